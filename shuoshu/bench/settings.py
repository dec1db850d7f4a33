"""Settings of bench.py."""

from __future__ import annotations

from dataclasses import dataclass

from shuoshu.core.schema import Settings, setting

SIZES = {
    "1m": (4, 4, 144),
    "2m": (4, 4, 192),
    "10m": (6, 6, 384),
    "85m": (12, 12, 768),
    "350m": (24, 16, 1024),
}  # blocks, heads, width


@dataclass
class BenchSettings(Settings):
    """benchmark"""

    words: tuple[str, ...] = setting((), "PART [FILE|FOLDER ...]", positional=True)
    vs: str | None = setting(None, "folder of a nanoGPT checkout to compare with")
    json: str | None = setting(None, "file for all raw figures")
    picture: str | None = setting(None, "loss: file for the curves, .png or .svg")
    pairs: int = setting(
        5,
        "rounds; each measures every program once, every second round in reversed order",
        low=1,
    )
    seconds: float = setting(
        6.0,
        "seconds of one measurement in train, or of all rounds of one point in scale",
        low=0.01,
    )
    steps: int = setting(8, "lora: steps of one measurement", low=1)
    minutes: float = setting(
        5.0,
        "loss: minutes that nanoGPT trains at each learning rate, without evaluations",
        low=0.01,
    )
    rate: tuple[str, ...] = setting(
        (),
        "loss: learning rate of nanoGPT; repeatable (default: 0.0006, 0.002, 0.006)",
    )
    share: tuple[str, ...] = setting(
        (),
        "loss: fraction of these minutes that Shuoshu trains; repeatable, tried until one reaches"
        " nanoGPT's loss (default: 0.1, 0.2, 0.4, 1)",
    )
    dropout: tuple[str, ...] = setting(
        (), "dropout of both programs; repeatable in loss (default: 0)"
    )
    tokens: int = setting(
        128, "sample, generate: number of tokens to generate; in sample after half a block", low=1
    )
    series: tuple[str, ...] = setting(
        (), "scale: size, context or batch; repeatable (default: all three)"
    )
    tokenizer: str = setting(
        "bpe",
        "tokenizer for prepare.py: bpe, chars, gpt2, or a folder with a tokenizer.json",
    )
    size: str = setting(
        "2m",
        "parameters outside embedding and head; the three settings below override it",
        choices=tuple(SIZES),
    )
    n_layer: int | None = setting(None, "number of transformer blocks (none: by size)", low=1)
    n_head: int | None = setting(None, "number of heads (none: by size)", low=1)
    n_embd: int | None = setting(None, "width of the embedding (none: by size)", low=8)
    block_size: int | None = setting(
        None, "context length in tokens (none: 256; 512 in sample)", low=8
    )
    batch_size: int = setting(16, "rows in one batch", low=1)
    gradient_accumulation_steps: int = setting(1, "batches per step", low=1)
    train_args: str = setting(
        "", 'more settings for our train.py: "--learning_rate=0.01 --warmup_iters=5"'
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:1")
    dtype: str = setting(
        "auto",
        "precision of Shuoshu, as in train.py and sample.py",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int | None = setting(None, "CPU threads of every program (none: all cores)", low=1)

    def problems(self) -> list[str]:
        problems = [
            f"series={name}: choose size, context or batch"
            for name in self.series
            if name not in ("size", "context", "batch")
        ]
        for name in ("rate", "share", "dropout"):
            for text in getattr(self, name):
                try:
                    float(text)
                except ValueError:
                    problems.append(f"{name}={text}: it must be a number")
        return problems

    def numbers(self, name: str, otherwise: tuple[float, ...]) -> tuple[float, ...]:
        """The values of a setting that may be given several times."""
        return tuple(float(text) for text in getattr(self, name)) or otherwise

    def shape(self) -> dict[str, int]:
        """n_layer, n_head and n_embd."""
        names = ("n_layer", "n_head", "n_embd")
        return {
            name: getattr(self, name) or by_size
            for name, by_size in zip(names, SIZES[self.size], strict=True)
        }
