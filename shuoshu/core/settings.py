"""The settings of every command: one dataclass per concern. `--help` prints the help of each field.

`none` as a value means that the program chooses; the help says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from shuoshu.core.schema import Settings, setting

MAX_COUNT = 1 << 53  # JSON readers keep whole numbers exact up to here
MAX_SEED = (1 << 63) - 1  # torch's generators take no larger seed
DEVICES = "auto, cpu, cuda, cuda:1 or mps"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def count(default: int | None, help: str) -> Any:
    """A setting that counts something: 1 or more."""
    return setting(default, help, low=1, high=MAX_COUNT)


@dataclass
class ModelSettings(Settings):
    """model"""

    n_layer: int = setting(4, "transformer blocks", low=1, high=1000)
    n_head: int = setting(4, "query heads", low=1, high=10_000)
    n_kv_head: int | None = setting(None, "key/value heads (none: n_head)", low=1, high=10_000)
    n_embd: int = setting(192, "embedding width", low=8, high=1_000_000)
    head_dim: int | None = setting(
        None, "width of one head, an even number (none: n_embd / n_head)", low=2, high=1_000_000
    )
    n_hidden: int | None = setting(
        None, "width of the MLP (none: 8/3 of n_embd, rounded up to 64)", low=1, high=1_000_000
    )
    block_size: int = setting(256, "context length in tokens", low=8, high=1 << 20)
    dropout: float = setting(
        0.0, "dropout on the embeddings and on both outputs of each block", low=0.0, high=0.95
    )
    tie_embeddings: bool = setting(
        False, "share one matrix between embedding and head (worse with small vocabularies)"
    )
    rope_theta: float = setting(10000.0, "base of the rotary position embedding", low=1.0)

    def problems(self) -> list[str]:
        problems = []
        if self.n_kv_head and self.n_head % self.n_kv_head:
            problems.append(
                f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}"
            )
        if not self.head_dim and (self.n_embd % self.n_head or self.n_embd // self.n_head % 2):
            problems.append(
                f"n_embd={self.n_embd} must be an even multiple of n_head={self.n_head}"
                " (or set head_dim)"
            )
        if self.head_dim and self.head_dim % 2:
            problems.append(f"head_dim={self.head_dim} must be even")
        return problems


@dataclass
class OptimSettings(Settings):
    """optimiser"""

    optimizer: str = setting(
        "muon", "muon: Muon for the blocks' matrices, AdamW for the rest", choices=("muon", "adamw")
    )
    learning_rate: float | None = setting(
        None, "muon: rate of the blocks' matrices; adamw: of all (none: 0.02; 0.001)", low=0.0
    )
    embedding_lr: float | None = setting(
        None, "muon: rate of the embedding (none: 0.1; 0.008 with tie_embeddings)", low=0.0
    )
    head_lr: float = setting(0.004, "muon: rate of the head, unless it is tied", low=0.0)
    norm_lr: float = setting(0.004, "muon: rate of the norms' weights", low=0.0)
    beta1: float = setting(0.8, "AdamW's beta1", low=0.0, high=0.9999)
    beta2: float = setting(0.95, "AdamW's beta2", low=0.0, high=0.99999)
    weight_decay: float = setting(
        0.0, "decoupled decay of every matrix, multiplied by its rate", low=0.0
    )
    grad_clip: float = setting(1.0, "maximum gradient norm (0: no clipping)", low=0.0)
    schedule: str = setting(
        "wsd",
        "learning rate schedule; wsd: warm-up, stable, linear decay",
        choices=("wsd", "cosine", "constant"),
    )
    warmup_iters: int = setting(10, "steps of linear warm-up", low=0, high=MAX_COUNT)
    decay_fraction: float = setting(0.5, "wsd: fraction of the run that decays", low=0.0, high=1.0)
    min_lr_fraction: float = setting(
        0.02, "last learning rate as a fraction of the full one", low=0.0, high=1.0
    )


@dataclass
class DataSettings(Settings):
    """data"""

    dataset: str = setting(
        "novella", "folder made by prepare.py or prepare_sft.py, or its name under data/"
    )
    batch_size: int = setting(16, "rows in one forward pass", low=1, high=1_000_000)
    gradient_accumulation_steps: int = setting(
        1, "batches per step, over all processes", low=1, high=1_000_000
    )
    seed: int = setting(
        1337, "seed of the data order, the initial weights and dropout", low=0, high=MAX_SEED
    )
    question_drop: float = setting(
        0.0, "probability of dropping a character of a training question", low=0.0, high=0.9
    )
    question_replace: float = setting(
        0.0, "probability of replacing a question token by a random one", low=0.0, high=0.9
    )
    paraphrases: int = setting(
        0, "synthetic paraphrases per training question and epoch (0: none)", low=0, high=100
    )


LENGTHS = ("max_iters", "max_epochs", "max_minutes")


@dataclass
class RunSettings(Settings):
    """run"""

    out_dir: str = setting("out-pretrain", "folder of the model, its checkpoints, log and curves")
    init_from: str = setting("scratch", "scratch, or the out_dir of the model to start from")
    max_iters: int | None = setting(
        None, "length in steps", low=1, high=MAX_COUNT, overrides=(*LENGTHS, "min_iters")
    )
    max_epochs: float | None = setting(
        None, "length in passes over the data", low=0.001, overrides=LENGTHS
    )
    min_iters: int | None = count(None, "minimum number of steps when max_epochs is set")
    max_minutes: float | None = setting(
        None,
        "length in minutes (no length set: 10), evaluations included",
        low=0.01,
        overrides=(*LENGTHS, "min_iters"),
    )
    eval_interval: int | None = count(None, "steps between evaluations (none: a tenth of the run)")
    eval_tokens: int | None = count(None, "text: validate on the first N tokens (none: on all)")
    eval_questions: int = count(200, "questions: validation questions answered per evaluation")
    select_by: str = setting(
        "auto",
        "keep the model of lowest val loss, or of highest ROUGE-L (ties within noise: the latest);"
        " auto: rouge for questions",
        choices=("auto", "loss", "rouge"),
    )
    patience: int | None = count(None, "evaluations without a better one before stopping")
    save_interval: int | None = count(None, "steps between checkpoints (none: one per evaluation)")
    log_interval: int = count(10, "steps between lines of log.jsonl")
    sample_prompt: str | None = setting(
        None, "prompt of the samples in samples.md (none: how the validation text begins)"
    )
    sample_tokens: int = setting(
        100, "length of these samples in tokens (0: no samples)", low=0, high=MAX_COUNT
    )
    device: str = setting("auto", DEVICES)
    dtype: str = setting(
        "auto", "auto: bfloat16 if faster, float16 on older GPUs, else float32", choices=DTYPES
    )
    compile: str = setting(
        "auto",
        "use torch.compile; auto: for text, on CUDA with Triton",
        choices=("auto", "true", "false"),
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)
    resume: bool = setting(False, "continue from the newest valid checkpoint in out_dir")
    overwrite: bool = setting(False, "delete an earlier run in out_dir first")
    dry_run: bool = setting(False, "print size, memory, time and disk use, then stop")

    def problems(self) -> list[str]:
        problems = []
        if self.resume and self.overwrite:
            problems.append("resume and overwrite exclude each other")
        if self.init_from == "resume":
            problems.append("init_from=resume: use --resume to continue a run")
        lengths = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(lengths) > 1:
            problems.append(
                f"{' and '.join(lengths)} are both set: choose one length, set the other to none"
            )
        if self.min_iters is not None and lengths in (["max_iters"], ["max_minutes"]):
            problems.append(
                f"min_iters={self.min_iters} goes with max_epochs, not with {lengths[0]}:"
                " leave one of the two out"
            )
        return problems


@dataclass
class TrainSettings(RunSettings, DataSettings, OptimSettings, ModelSettings):
    REPLACED_BY: ClassVar[dict[str, str]] = {  # settings of nanoGPT that don't exist here
        "min_lr": "--min_lr_fraction sets the last learning rate, relative to the full one",
        "decay_lr": "--schedule=constant turns the decay off",
        "lr_decay_iters": "the decay ends with the run; --decay_fraction sets its length",
        "eval_iters": "--eval_tokens limits the validation text, which is scored in full otherwise",
        "always_save_checkpoint": "the two newest checkpoints and the best model are always kept",
        "backend": "nccl on CUDA and gloo on a CPU are chosen automatically",
        "bias": "the model has no biases",
    }
    configs: tuple[str, ...] = setting((), "config/FILE.py", positional=True)


@dataclass
class PrepareSettings(Settings):
    """prepare"""

    inputs: tuple[str, ...] = setting((), "FILE|FOLDER", positional=True)
    out: str | None = setting(None, "folder to write (none: data/<stem of the first input>)")
    tokenizer: str = setting(
        "bpe",
        "bpe: trained on your text; chars: one token per character; gpt2;"
        " or a folder with a tokenizer.json",
    )
    vocab_size: int | None = setting(
        None,
        "vocabulary size (none: by the size of the text; with chars: all)",
        low=300,
        high=1_000_000,
    )
    clean: bool = setting(
        True, "remove advertisements, contents lists, licences (false: only normalise the layout)"
    )
    show_removed: bool = setting(False, "list everything that was removed")
    encoding: str | None = setting(
        None, "utf-8, gb18030, big5, utf-16 … (none: detected for each file)"
    )
    skip_bad: bool = setting(False, "skip files that are not text, instead of stopping")
    val_fraction: float = setting(
        0.05, "fraction of each book's end for validation, cut at a chapter", low=0.0, high=0.9
    )
    seed: int = setting(
        1337, "seed of the text sample that trains the tokenizer", low=0, high=MAX_SEED
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)


@dataclass
class PrepareSftSettings(Settings):
    """prepare"""

    inputs: tuple[str, ...] = setting((), "FILE|FOLDER", positional=True)
    out: str | None = setting(None, "folder to write (none: data/<stem of the first input>)")
    tokenizer: str = setting(
        "out-pretrain", "out_dir of the model to fine-tune, or a folder with its tokenizer.json"
    )
    question: str | None = setting(
        None, 'template of the question: "评论内容：{review} 这条评论是正面还是负面？"'
    )
    answer: str | None = setting(None, 'template of the answer: "{label}"')
    system: str | None = setting(None, "template of the system message before every question")
    labels: str | None = setting(None, 'meaning of the answer column\'s values: "1=正面,0=负面"')
    group: str | None = setting(None, "column; rows with the same value stay in the same split")
    too_long: str = setting(
        "error",
        "what to do with pairs longer than block_size",
        choices=("error", "drop", "cut_question", "window"),
    )
    block_size: int | None = setting(
        None, "tokens per row (none: the model's context, else 256)", low=16, high=1 << 20
    )
    val_fraction: float = setting(
        0.1, "fraction for validation, unless the files name splits", low=0.0, high=0.9
    )
    test_fraction: float = setting(
        0.1, "fraction for the final test, unless the files name splits", low=0.0, high=0.9
    )
    encoding: str | None = setting(None, "utf-8, gb18030 … (none: detected for each file)")
    show: int = setting(
        0, "print N training rows, with the trained part marked", low=0, high=MAX_COUNT
    )
    seed: int = setting(1337, "seed of the split", low=0, high=MAX_SEED)

    def problems(self) -> list[str]:
        if self.val_fraction + self.test_fraction >= 1:
            return ["val_fraction and test_fraction leave nothing to train on"]
        return []


@dataclass
class SampleSettings(Settings):
    """sampling"""

    start: tuple[str, ...] = setting(
        (), "text to continue or question to answer; or FILE:prompt.txt; repeatable", any_bytes=True
    )
    chat: bool = setting(False, "answer questions in turn (/new starts over, an empty line ends)")
    continue_text: bool = setting(False, "continue text, even with a fine-tuned model")
    out_dir: str | None = setting(
        None, "folder of the model (none: the newer of out-sft and out-pretrain)"
    )
    num_samples: int = setting(1, "texts per prompt", low=1, high=10_000)
    max_new_tokens: int = count(300, "maximum length in tokens")
    temperature: float | None = setting(
        None,
        "0: always the likeliest token; 1: as the model predicts (none: 0 for answers, else 0.8)",
        low=0.0,
        high=100.0,
    )
    top_k: int | None = count(200, "sample from the k most likely tokens (none: all)")
    top_p: float = setting(
        1.0, "sample from the most likely tokens that hold this probability", low=0.0, high=1.0
    )
    min_p: float = setting(
        0.0, "drop tokens below this fraction of the highest probability", low=0.0, high=1.0
    )
    repetition_penalty: float = setting(
        1.0, "above 1: tokens in the context become less likely", low=0.01, high=100.0
    )
    stop: tuple[str, ...] = setting((), "end a text before this string; repeatable")
    seed: int = setting(1337, "the same seed gives the same text", low=0, high=MAX_SEED)
    infile: str | None = setting(
        None, "file of prompts: .csv, .jsonl, or .txt with one per line; needs --out", alias="in"
    )
    outfile: str | None = setting(None, "file for the prompts and their answers", alias="out")
    batch_size: int = setting(16, "texts generated in parallel", low=1, high=1_000_000)
    device: str = setting("auto", DEVICES)
    dtype: str = setting("auto", "auto: bfloat16 on CUDA, else float32", choices=DTYPES)
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)


@dataclass
class EvalSettings(Settings):
    """evaluation"""

    out_dirs: tuple[str, ...] = setting((), "OUT_DIR", positional=True)
    compare: tuple[str, ...] = setting((), "another model to measure on the same rows; repeatable")
    data: str | None = setting(
        None, "prepared folder, or its name under data/ (none: the model's training data)"
    )
    split: str | None = setting(
        None,
        "split to measure (none: test if there is one, else val)",
        choices=("train", "val", "test", "untaught", "all"),
    )
    limit: int | None = count(None, "questions per split, or prompts (none: all; 40 prompts)")
    beta: float = setting(
        1.0, "weight of recall relative to precision in ROUGE-L", low=0.01, high=100.0
    )
    rouge: str = setting(
        "units",
        "units of ROUGE-L; units: whole Latin words and numbers, no spaces; chars: all characters",
        choices=("units", "chars"),
    )
    stride: int | None = count(None, "text: tokens between two windows (none: half a block)")
    max_new_tokens: int | None = count(
        None, "maximum length in tokens (none: twice the longest reference; text: 100)"
    )
    batch_size: int = setting(64, "texts processed in parallel", low=1, high=1_000_000)
    seed: int = setting(
        1337, "seed of intervals, continuations and the report's examples", low=0, high=MAX_SEED
    )
    device: str = setting("auto", DEVICES)
    dtype: str = setting(
        "float32", "precision of the weights; float32 makes figures comparable", choices=DTYPES[1:]
    )
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1, high=1024)


@dataclass
class AppSettings(Settings):
    """page"""

    out_dirs: tuple[str, ...] = setting((), "OUT_DIR", positional=True)
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0: open to other machines, needs --auth"
    )
    port: int | None = setting(None, "port (none: the first free one from 7860)", low=1, high=65535)
    auth: tuple[str, ...] = setting((), "USER:PASSWORD for the login; repeatable")
    share: bool = setting(
        False, "public address for three days, through Gradio's servers; needs --auth"
    )
    insecure: bool = setting(False, "allow access without --auth")
    queue: int = setting(20, "maximum number of requests that wait for the model", low=1)
    max_new_tokens: int = setting(500, "maximum length of a text in tokens", low=1)
    max_seconds: float = setting(60.0, "maximum time for a text, in seconds", low=1.0)
    device: str = setting("auto", DEVICES)
    dtype: str = setting("auto", "auto: bfloat16 on CUDA, else float32", choices=DTYPES)
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1)

    def problems(self) -> list[str]:
        problems = [
            f"auth={login}: it must be USER:PASSWORD"
            for login in self.auth
            if not all(login.partition(":")[::2])
        ]
        is_private = self.host in ("127.0.0.1", "localhost", "::1") and not self.share
        if not is_private and not self.auth and not self.insecure:
            flag = "--share" if self.share else f"--host={self.host}"
            problems.append(
                f"{flag} lets others in: set --auth=USER:PASSWORD, or --insecure to allow anybody"
            )
        return problems
