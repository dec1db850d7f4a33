"""Settings of bench.py."""

from __future__ import annotations

from dataclasses import dataclass

from shuoshu.core.cli import setting

SIZES = {
    "1m": (4, 4, 144),
    "2m": (4, 4, 192),
    "10m": (6, 6, 384),
    "85m": (12, 12, 768),
    "350m": (24, 16, 1024),
}  # blocks, heads, width


@dataclass
class BenchSettings:
    """what is measured"""

    words: tuple[str, ...] = setting((), "PART [FILE|FOLDER ...]", positional=True)
    vs: str | None = setting(None, "the folder of a nanoGPT checkout to measure beside ours")
    json: str | None = setting(None, "a file for all raw figures")
    picture: str | None = setting(None, "loss: a file for the curves, .png or .svg")
    pairs: int = setting(
        5,
        "rounds in which every contender is measured once, each second one in reversed order",
        low=1,
    )
    seconds: float = setting(
        6.0,
        "length of one measurement of train and sft, of all rounds of a point in scale",
        low=0.01,
    )
    clock: str = setting(
        "wall",
        "cpu: CPU seconds of the measured process, for a busy machine, with --threads=1; not in loss, prepare, startup",
        choices=("wall", "cpu"),
    )
    minutes: float = setting(
        5.0,
        "loss: how long the peer trains at each of its rates, evaluations not counted",
        low=0.01,
    )
    rate: tuple[str, ...] = setting(
        (),
        "loss: a learning rate that the peer tries; may be given several times (none: 0.0006, 0.002 and 0.006)",
    )
    share: tuple[str, ...] = setting(
        (),
        "loss: a share of the minutes that ours tries, until one reaches the peer's loss, and the last; likewise (none: 0.1, 0.2, 0.4, 1)",
    )
    dropout: tuple[str, ...] = setting(
        (), "a dropout that both try; loss takes several, the others the first (none: 0)"
    )
    tokens: int = setting(128, "sample: tokens of a text, after a prompt of half the block", low=1)
    megabytes: tuple[str, ...] = setting(
        (), "prepare: size of a corpus; may be given several times (none: 1, 10 and 100)"
    )
    series: tuple[str, ...] = setting(
        (), "scale: size, context or batch; may be given several times (none: all three)"
    )
    tokenizer: str = setting(
        "bpe",
        "what prepare.py makes of the text: bpe, chars, gpt2, or a folder with a tokenizer.json",
    )
    size: str = setting(
        "2m",
        "parameters outside embedding and head, where the three below don't say",
        choices=tuple(SIZES),
    )
    n_layer: int | None = setting(None, "blocks (none: by size)", low=1)
    n_head: int | None = setting(None, "heads (none: by size)", low=1)
    n_embd: int | None = setting(None, "width (none: by size)", low=8)
    block_size: int | None = setting(
        None, "context length in tokens (none: 256; 512 in sample and sft)", low=8
    )
    batch_size: int = setting(16, "rows that go through a model at once", low=1)
    gradient_accumulation_steps: int = setting(1, "batches per step", low=1)
    ours: str = setting(
        "", 'further settings of train.py for ours: "--learning_rate=0.01 --warmup_iters=5"'
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1")
    dtype: str = setting(
        "auto",
        "of ours, as train.py and sample.py have it",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int | None = setting(None, "CPU threads of every contender (none: all cores)", low=1)

    def problems(self) -> list[str]:
        found = [
            f"series={name}: size, context or batch is wanted"
            for name in self.series
            if name not in ("size", "context", "batch")
        ]
        found += ["clock=cpu: CPU seconds of several threads say nothing; add --threads=1"] * (
            self.clock == "cpu" and self.threads != 1
        )
        for name in ("rate", "share", "dropout", "megabytes"):
            for text in getattr(self, name):
                try:
                    float(text)
                except ValueError:
                    found.append(f"{name}={text}: a number is wanted")
        return found

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
