"""All settings, one dataclass per concern: a default and a line of meaning each, which is what --help prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shuoshu.core.cli import setting


@dataclass
class ModelSettings:
    """model"""

    n_layer: int = setting(4, "blocks", low=1, high=1000)
    n_head: int = setting(4, "query heads", low=1, high=10_000)
    n_kv_head: int | None = setting(
        None, "key and value heads (none: as many as n_head)", low=1, high=10_000
    )
    n_embd: int = setting(192, "width", low=8, high=1_000_000)
    head_dim: int | None = setting(
        None, "width of a head, even (none: n_embd / n_head)", low=2, high=1_000_000
    )
    n_hidden: int | None = setting(
        None, "width inside the MLP (none: 8/3 of n_embd, rounded up to 64)", low=1, high=1_000_000
    )
    block_size: int = setting(256, "context length in tokens", low=8, high=1 << 20)
    dropout: float = setting(
        0.0, "dropout on embeddings and on each block's two outputs", low=0.0, high=0.95
    )
    tie_embeddings: bool = setting(
        False,
        "one matrix for the embedding and the head (saves parameters; worse on small vocabularies)",
    )
    rope_theta: float = setting(10000.0, "base of the rotary positions", low=1.0)

    def problems(self) -> list[str]:
        found = []
        if self.n_kv_head and self.n_head % self.n_kv_head:
            found.append(f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}")
        if not self.head_dim and (self.n_embd % self.n_head or self.n_embd // self.n_head % 2):
            found.append(
                f"n_embd={self.n_embd} must be an even multiple of n_head={self.n_head} (or set head_dim)"
            )
        if self.head_dim and self.head_dim % 2:
            found.append(f"head_dim={self.head_dim} must be even")
        return found


@dataclass
class OptimSettings:
    """optimiser"""

    optimizer: str = setting(
        "muon",
        "muon: Muon for the block matrices, AdamW for the rest; adamw: AdamW alone",
        choices=("muon", "adamw"),
    )
    learning_rate: float | None = setting(
        None,
        "rate of the block matrices, with adamw of everything (none: 0.02 muon, 0.001 adamw)",
        low=0.0,
    )
    embedding_lr: float | None = setting(
        None, "AdamW's rate for the embedding beside Muon (none: 0.1, tied 0.008)", low=0.0
    )
    head_lr: float = setting(0.004, "AdamW's rate for an untied head beside Muon", low=0.0)
    norm_lr: float = setting(0.004, "AdamW's rate for the norms' gains beside Muon", low=0.0)
    beta1: float = setting(0.8, "AdamW's first beta", low=0.0, high=0.9999)
    beta2: float = setting(0.95, "AdamW's second beta", low=0.0, high=0.99999)
    weight_decay: float = setting(0.0, "decoupled decay of every matrix, times its rate", low=0.0)
    grad_clip: float = setting(1.0, "largest gradient norm (0: no clipping)", low=0.0)
    schedule: str = setting(
        "wsd",
        "wsd: warm-up, stable, linear decay; cosine; constant",
        choices=("wsd", "cosine", "constant"),
    )
    warmup_iters: int = setting(10, "steps of linear warm-up", low=0, high=1 << 53)
    decay_fraction: float = setting(
        0.5, "share of the run that wsd spends decaying", low=0.0, high=1.0
    )
    min_lr_fraction: float = setting(
        0.02, "the last rate as a share of the full one", low=0.0, high=1.0
    )


@dataclass
class DataSettings:
    """data"""

    dataset: str = setting(
        "novella", "a folder that prepare.py or prepare_sft.py made, or its name under data/"
    )
    batch_size: int = setting(16, "rows that go through the model at once", low=1, high=1_000_000)
    gradient_accumulation_steps: int = setting(
        1, "batches per step, over all processes", low=1, high=1_000_000
    )
    seed: int = setting(
        1337, "of the data's order, the initial weights and dropout", low=0, high=(1 << 63) - 1
    )
    question_drop: float = setting(
        0.0,
        "share of a question's characters left out in training, drawn anew in each epoch",
        low=0.0,
        high=0.9,
    )
    question_replace: float = setting(
        0.0,
        "share of its tokens then swapped for others, so that answers don't hang on every word",
        low=0.0,
        high=0.9,
    )
    paraphrases: int = setting(
        0,
        "for each question so many more, made up anew of pieces of those with its answer, of it, and of others",
        low=0,
        high=100,
    )


LENGTHS = ("max_iters", "max_epochs", "max_minutes")


@dataclass
class RunSettings:
    """run"""

    out_dir: str = setting(
        "out-pretrain", "the folder of the model, its checkpoints, log and curves"
    )
    init_from: str = setting("scratch", "scratch, or the out-dir whose model to start from")
    max_iters: int | None = setting(
        None, "length in steps", low=1, high=1 << 53, rivals=(*LENGTHS, "min_iters")
    )
    max_epochs: float | None = setting(
        None, "length in passes over the data", low=0.001, rivals=LENGTHS
    )
    min_iters: int | None = setting(
        None,
        "with max_epochs: so many steps at least, however few rows there are",
        low=1,
        high=1 << 53,
    )
    max_minutes: float | None = setting(
        None,
        "length in minutes with all pauses (no length set: 10 minutes)",
        low=0.01,
        rivals=(*LENGTHS, "min_iters"),
    )
    eval_interval: int | None = setting(
        None, "steps between evaluations (none: a tenth of the run)", low=1, high=1 << 53
    )
    eval_tokens: int | None = setting(
        None, "validate on the first N tokens of text only (none: on all)", low=1, high=1 << 53
    )
    eval_questions: int = setting(
        200, "validation questions that every evaluation answers", low=1, high=1 << 53
    )
    select_by: str = setting(
        "auto",
        "keep the best by val loss, or the last as good by ROUGE-L; auto: rouge for questions",
        choices=("auto", "loss", "rouge"),
    )
    patience: int | None = setting(
        None, "stop after so many evaluations without a better one", low=1, high=1 << 53
    )
    save_interval: int | None = setting(
        None, "steps between checkpoints (none: at every evaluation)", low=1, high=1 << 53
    )
    log_interval: int = setting(10, "steps between lines of log.jsonl", low=1, high=1 << 53)
    sample_prompt: str | None = setting(
        None,
        "what every evaluation continues into samples.md (none: how the validation text begins)",
    )
    sample_tokens: int = setting(100, "length of that sample", low=0, high=1 << 53)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting(
        "auto",
        "auto: bf16 where it is faster, else fp16 on older GPUs, else fp32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: str = setting(
        "auto",
        "torch.compile; auto: on CUDA with Triton, for text (questions come in many widths)",
        choices=("auto", "true", "false"),
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)
    resume: bool = setting(False, "go on from the newest valid checkpoint in out_dir")
    overwrite: bool = setting(False, "delete an earlier run in out_dir first")
    dry_run: bool = setting(False, "print size, memory, time and disk, and stop")

    def problems(self) -> list[str]:
        found = (
            ["resume and overwrite exclude each other"] if self.resume and self.overwrite else []
        )
        if self.init_from == "resume":
            found.append("init_from=resume: to go on with a run, say --resume")
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            found.append(
                f"{' and '.join(given)} are both set: choose one length, and set the other to none"
            )
        if self.min_iters is not None and given in (["max_iters"], ["max_minutes"]):
            found.append(
                f"min_iters={self.min_iters} goes with max_epochs, not with {given[0]}: leave one of the two out"
            )
        return found


@dataclass
class TrainSettings(RunSettings, DataSettings, OptimSettings, ModelSettings):
    ELSEWHERE: ClassVar[dict[str, str]] = {  # what nanoGPT's users look for
        "min_lr": "the lowest rate is --min_lr_fraction of the full one",
        "decay_lr": "the rates stay with --schedule=constant",
        "lr_decay_iters": "the decay ends with the run; --decay_fraction says how long it takes",
        "eval_iters": "all of the validation text is scored, or its first --eval_tokens",
        "always_save_checkpoint": "the two newest checkpoints are always kept, beside the best model",
        "backend": "nccl on CUDA, gloo on a CPU, by itself",
        "bias": "the model has no biases",
    }
    configs: tuple[str, ...] = setting((), "config/FILE.py", positional=True)


@dataclass
class PrepareSettings:
    """prepare"""

    inputs: tuple[str, ...] = setting((), "FILE|FOLDER", positional=True)
    out: str | None = setting(None, "the folder to write (none: data/<stem of the first input>)")
    tokenizer: str = setting(
        "bpe",
        "bpe: trained on your text; chars: one token per character; gpt2; or a folder with a tokenizer.json",
    )
    vocab_size: int | None = setting(
        None,
        "entries of the vocabulary (none: by the size of the text; chars: every character)",
        low=300,
        high=1_000_000,
    )
    clean: bool = setting(
        True,
        "take out advertisements, notices, contents lists, front matter, licences (false: only make the layout uniform)",
    )
    show_removed: bool = setting(False, "list all that was taken out")
    encoding: str | None = setting(
        None, "of the files: utf-8, gb18030, big5, utf-16 … (none: by evidence, for each file)"
    )
    skip_bad: bool = setting(False, "leave files out that are no text, instead of stopping")
    val_fraction: float = setting(
        0.05,
        "share of each book's end kept for validation, cut at a chapter (0: none)",
        low=0.0,
        high=0.9,
    )
    seed: int = setting(
        1337, "of the sample that the tokenizer is trained on", low=0, high=(1 << 63) - 1
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)


@dataclass
class PrepareSftSettings:
    """prepare"""

    inputs: tuple[str, ...] = setting((), "FILE|FOLDER", positional=True)
    out: str | None = setting(None, "the folder to write (none: data/<stem of the first input>)")
    tokenizer: str = setting(
        "out-pretrain",
        "the out-dir of the model to fine-tune, or another folder with its tokenizer.json",
    )
    question: str | None = setting(
        None,
        'how a question is put from the columns: "评论内容：{review} 这条评论是正面还是负面？"',
    )
    answer: str | None = setting(None, 'what is to be answered: "{label}"')
    system: str | None = setting(
        None, "what is said before every question, with or without {columns}"
    )
    labels: str | None = setting(None, 'what the answers in a column mean: "1=正面,0=负面"')
    group: str | None = setting(None, "a column: rows that agree in it stay in the same split")
    too_long: str = setting(
        "error",
        "what to do with pairs that don't fit",
        choices=("error", "drop", "cut_question", "window"),
    )
    block_size: int | None = setting(
        None,
        "tokens that a row may have (none: as many as the model beside the tokenizer reads, else 256)",
        low=16,
        high=1 << 20,
    )
    val_fraction: float = setting(
        0.1, "share kept for validation, where the files name no split", low=0.0, high=0.9
    )
    test_fraction: float = setting(
        0.1, "share kept for the final test, likewise", low=0.0, high=0.9
    )
    encoding: str | None = setting(
        None, "of the files: utf-8, gb18030 … (none: by evidence, for each file)"
    )
    show: int = setting(
        0,
        "print so many training rows as the model gets them, the trained part marked",
        low=0,
        high=1 << 53,
    )
    seed: int = setting(1337, "of the split", low=0, high=(1 << 63) - 1)

    def problems(self) -> list[str]:
        return (
            ["val_fraction and test_fraction leave nothing to train on"]
            if self.val_fraction + self.test_fraction >= 1
            else []
        )


@dataclass
class SampleSettings:
    """sampling"""

    start: tuple[str, ...] = setting(
        (),
        "the text to continue, of a fine-tuned model the question; or FILE:prompt.txt; may be given several times",
        any_text=True,
    )
    chat: bool = setting(
        False, "ask in turn, answer by answer (/new forgets what was said, an empty line ends)"
    )
    raw: bool = setting(False, "continue text with a fine-tuned model too")
    out_dir: str | None = setting(
        None, "the model's folder (none: the newest of out-sft, out-pretrain)"
    )
    num_samples: int = setting(1, "texts per prompt", low=1, high=10_000)
    max_new_tokens: int = setting(300, "longest continuation in tokens", low=1, high=1 << 53)
    temperature: float | None = setting(
        None,
        "0: the likeliest token every time; 1: as the model believes (none: 0 for answers, else 0.8)",
        low=0.0,
        high=100.0,
    )
    top_k: int | None = setting(
        200, "choose among the k likeliest tokens (none: all)", low=1, high=1 << 53
    )
    top_p: float = setting(
        1.0,
        "choose among the likeliest tokens that hold this share of probability",
        low=0.0,
        high=1.0,
    )
    min_p: float = setting(
        0.0, "drop tokens less likely than this share of the likeliest", low=0.0, high=1.0
    )
    repetition_penalty: float = setting(
        1.0, "above 1: what stands in the context already becomes less likely", low=0.01, high=100.0
    )
    stop: tuple[str, ...] = setting((), "end a text before this string; may be given several times")
    seed: int = setting(1337, "same seed, same text", low=0, high=(1 << 63) - 1)
    infile: str | None = setting(
        None, "a .csv, .txt (one per line) or .jsonl of prompts or questions, for --out", alias="in"
    )
    outfile: str | None = setting(
        None, "the file to write the answers to, beside their prompts", alias="out"
    )
    batch_size: int = setting(16, "texts generated side by side", low=1, high=1_000_000)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting(
        "auto", "auto: bf16 on CUDA, else fp32", choices=("auto", "float32", "bfloat16", "float16")
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)


@dataclass
class EvalSettings:
    """evaluation"""

    out_dirs: tuple[str, ...] = setting((), "OUT_DIR", positional=True)
    compare: tuple[str, ...] = setting(
        (), "another model, to be set beside this one on the same rows; may be given several times"
    )
    data: str | None = setting(
        None, "a prepared folder, or its name under data/ (none: what the model was trained on)"
    )
    split: str | None = setting(
        None, "none: test, else val", choices=("train", "val", "test", "untaught", "all")
    )
    limit: int | None = setting(
        None,
        "questions of each split, evenly chosen, or prompts to continue (none: all questions, 40 prompts)",
        low=1,
        high=1 << 53,
    )
    beta: float = setting(
        1.0, "weight of recall against precision in ROUGE-L", low=0.01, high=100.0
    )
    rouge: str = setting(
        "units",
        "units: Latin words and numbers stay whole, blanks don't count; chars: every character",
        choices=("units", "chars"),
    )
    stride: int | None = setting(
        None,
        "tokens from one window of a text to the next (none: half a block)",
        low=1,
        high=1 << 53,
    )
    max_new_tokens: int | None = setting(
        None,
        "longest answer or continuation (none: twice the longest reference; 100 for text)",
        low=1,
        high=1 << 53,
    )
    batch_size: int = setting(64, "texts side by side", low=1, high=1_000_000)
    seed: int = setting(
        1337,
        "of the intervals, the continuations, and the random answers in the report",
        low=0,
        high=(1 << 63) - 1,
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting(
        "float32",
        "precision of the weights; figures to be compared want float32",
        choices=("float32", "bfloat16", "float16"),
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)


@dataclass
class AppSettings:
    """page"""

    out_dirs: tuple[str, ...] = setting((), "OUT_DIR", positional=True)
    host: str = setting(
        "127.0.0.1",
        "the address to listen at; 0.0.0.0: other machines may read too, which wants --auth",
    )
    port: int | None = setting(
        None, "the port (none: the first free one from 7860)", low=1, high=65535
    )
    auth: tuple[str, ...] = setting(
        (), "USER:PASSWORD that readers log in with; may be given several times"
    )
    share: bool = setting(
        False, "a public address for three days, through Gradio's servers; wants --auth"
    )
    insecure: bool = setting(False, "let others read without --auth")
    queue: int = setting(
        20,
        "readers that may wait for the model at a time; further ones are told to try later",
        low=1,
    )
    max_new_tokens: int = setting(
        500, "the longest text that a reader may ask for, in tokens", low=1
    )
    max_seconds: float = setting(60.0, "the longest time that a text may take", low=1.0)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting(
        "auto", "auto: bf16 on CUDA, else fp32", choices=("auto", "float32", "bfloat16", "float16")
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1)

    def problems(self) -> list[str]:
        found = [
            f"auth={given}: USER:PASSWORD is wanted"
            for given in self.auth
            if not all(given.partition(":")[::2])
        ]
        is_private = self.host in ("127.0.0.1", "localhost", "::1") and not self.share
        if not is_private and not self.auth and not self.insecure:
            reach = "--share" if self.share else f"--host={self.host}"
            found.append(
                f"{reach} lets others in: set --auth=USER:PASSWORD, or say --insecure if anybody may"
            )
        return found
