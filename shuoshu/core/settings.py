"""The settings of train.py: one dataclass per concern.

`none` as a value means that the program chooses; the help says how. `--help` prints the first line
of each class and the help of each setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shuoshu.core.schema import (
    BASE_HELP,
    DEVICE_HELP,
    DTYPES,
    MAX_COUNT,
    THREADS_HELP,
    Settings,
    count,
    number,
    random_seed,
    setting,
)

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class ModelSettings(Settings):
    """model"""

    n_layer: int = count(4, "number of transformer blocks", high=1000)
    n_head: int = count(4, "number of query heads", high=10_000)
    n_kv_head: int | None = count(
        None,
        "number of key/value heads; n_head must be a multiple of it (none: n_head)",
        high=10_000,
    )
    n_embd: int = setting(
        192, "width of the embedding and of the residual stream", low=8, high=1_000_000
    )
    head_dim: int | None = setting(
        None, "width of one head, an even number (none: n_embd / n_head)", low=2, high=1_000_000
    )
    n_hidden: int | None = count(
        None,
        "width of the MLP's hidden layer (none: 8/3 of n_embd, rounded up to a multiple of 64)",
        high=1_000_000,
    )
    block_size: int = setting(256, "context length in tokens", low=8, high=1 << 20)
    dropout: float = number(
        0.0,
        "probability of dropping a value of the embeddings, or of a block's two outputs",
        high=0.95,
    )
    tie_embeddings: bool = setting(
        False, "use one matrix for the embedding and the head (worse with small vocabularies)"
    )
    rope_theta: float = number(10000.0, "base of the rotary position embedding", low=1.0)

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
    """optimizer"""

    optimizer: str = setting(
        "muon",
        "muon: Muon for the blocks' matrices and AdamW for the rest; adamw: AdamW for all",
        choices=("muon", "adamw"),
    )
    learning_rate: float | None = number(
        None,
        "peak learning rate of the blocks' matrices; with adamw, of all parameters (none:"
        " 0.02; with adamw 0.001)",
    )
    embedding_lr: float | None = number(
        None,
        "with muon, peak learning rate of the embedding (none: 0.1; 0.008 with tie_embeddings)",
    )
    head_lr: float = number(0.004, "with muon, peak learning rate of the head, unless it is tied")
    norm_lr: float = number(0.004, "with muon, peak learning rate of the norms' weights")
    beta1: float = number(0.8, "decay rate of AdamW's running mean of gradients", high=0.9999)
    beta2: float = number(
        0.95, "decay rate of AdamW's running mean of squared gradients", high=0.99999
    )
    weight_decay: float = number(
        0.0, "decoupled weight decay of the matrices, multiplied by their learning rate"
    )
    grad_clip: float = number(
        1.0, "maximum norm of the gradient; larger ones are scaled down (0: never)"
    )
    schedule: str = setting(
        "wsd",
        "learning rate after the warm-up; wsd: stable, then a linear decay to the end of"
        " the run; cosine: half a cosine wave; constant: no decay",
        choices=("wsd", "cosine", "constant"),
    )
    warmup_iters: int = setting(
        10, "steps in which the learning rate rises linearly to its peak", low=0, high=MAX_COUNT
    )
    decay_fraction: float = number(
        0.5, "with wsd, fraction of the run in which the learning rate decays", high=1.0
    )
    min_lr_fraction: float = number(
        0.02, "learning rate at the end of the decay, as a fraction of the peak", high=1.0
    )


@dataclass
class LoraSettings(Settings):
    """LoRA: a small update of a frozen model"""

    lora_rank: int | None = count(
        None, "rank of the updates that are trained instead of the weights (none: no LoRA)", 4096
    )
    lora_alpha: float = number(
        32.0, "the updates are multiplied by lora_alpha / lora_rank", low=0.001, high=1e6
    )
    lora_dropout: float = number(
        0.0, "probability of dropping a value of an update's input", high=0.95
    )
    lora_targets: str = setting(
        "all",
        "layers that get an update; all: the seven linear layers of a block; or some of"
        f" {','.join(LORA_TARGETS)}",
    )
    lora_rslora: bool = setting(
        False, "multiply the updates by lora_alpha / √lora_rank instead (rsLoRA)"
    )

    def target_names(self) -> tuple[str, ...]:
        """The names of the layers in lora_targets."""
        if self.lora_targets == "all":
            return LORA_TARGETS
        return tuple(dict.fromkeys(name.strip() for name in self.lora_targets.split(",")))

    def problems(self) -> list[str]:
        if wrong := [name for name in self.target_names() if name not in LORA_TARGETS]:
            return [
                f"lora_targets={self.lora_targets}: {wrong[0]!r} is none of"
                f" {', '.join(LORA_TARGETS)}"
            ]
        return []


@dataclass
class DataSettings(Settings):
    """data"""

    dataset: str = setting(
        "novella", "folder written by prepare.py or prepare_sft.py, or its name under data/"
    )
    batch_size: int = count(16, "rows in one forward pass of a process", high=1_000_000)
    gradient_accumulation_steps: int = count(
        1, "batches per step, summed over all processes", high=1_000_000
    )
    seed: int = random_seed("seed of the data order, the initial weights and dropout")
    judge_by: str = setting(
        "answer",
        "on labels, how a label is scored; answer: by its probability as the answer; text: by the"
        " votes of all tokens of the text, for models trained from scratch",
        choices=("answer", "text"),
    )
    read_fraction: float = number(
        0.0,
        "with judge_by=text, share of the run in which the model learns to write the texts, at 10/3"
        " of the learning rates, before it learns their labels",
        high=0.95,
    )
    label_weights: str | None = setting(
        None,
        "with judge_by=text, weights of the labels in the loss; balanced: rare labels weigh as much"
        ' as frequent ones; or a number for each, "好=1,坏=2.5" (none: all weigh 1)',
    )
    question_drop: float = number(
        0.0,
        "probability that a character of a training question is dropped; with judge_by=text, a"
        " token",
        high=0.9,
    )
    question_replace: float = number(
        0.0, "probability that a token of a training question is replaced by a random one", high=0.9
    )
    paraphrases: int = setting(
        0, "synthetic paraphrases per training question and epoch", low=0, high=100
    )


LENGTHS = ("max_iters", "max_epochs", "max_minutes")


@dataclass
class RunSettings(Settings):
    """run"""

    out_dir: str = setting("out-pretrain", "folder for the model, its checkpoints, log and curves")
    init_from: str = setting(
        "scratch",
        "scratch: random weights; or the folder of a model or of an adapter to start from",
    )
    base: str | None = setting(None, BASE_HELP)
    max_iters: int | None = setting(
        None, "length of the run in steps", low=1, high=MAX_COUNT, overrides=(*LENGTHS, "min_iters")
    )
    max_epochs: float | None = setting(
        None, "length of the run in passes over the data", low=0.001, overrides=LENGTHS
    )
    min_iters: int | None = count(None, "minimum number of steps when max_epochs is set")
    max_minutes: float | None = setting(
        None,
        "length of the run in minutes, evaluations included (10 if no length is set)",
        low=0.01,
        overrides=(*LENGTHS, "min_iters"),
    )
    eval_interval: int | None = count(
        None,
        "steps between evaluations (none: a tenth of the run; rarer if they would take over 15% of"
        " max_minutes)",
    )
    eval_tokens: int | None = count(
        None,
        "on text, number of validation tokens to measure on, in whole windows that are evenly"
        " spread over the text (none: all)",
    )
    eval_questions: int | None = count(
        None,
        "on questions, number of validation questions to answer in an evaluation; each label has"
        " its share (none: 200; on labels 2,000)",
    )
    select_by: str = setting(
        "auto",
        "which model to keep; loss: the one with the lowest validation loss; rouge: the one with"
        " the highest ROUGE-L, or a later one within noise of it; accuracy and macro_f1, on"
        " labels: the one with the highest; auto: loss on text, rouge on questions, accuracy on"
        " labels",
        choices=("auto", "loss", "rouge", "accuracy", "macro_f1"),
    )
    patience: int | None = count(
        None, "stop after this many evaluations without a better model (none: never)"
    )
    save_interval: int | None = count(
        None, "steps between checkpoints (none: a tenth of the run, or eval_interval)"
    )
    log_interval: int = count(10, "steps between lines of log.jsonl")
    sample_prompt: str | None = setting(
        None, "prompt of the samples in samples.md (none: the beginning of the validation text)"
    )
    sample_tokens: int = setting(
        100, "length of a sample in samples.md in tokens (0: no samples)", low=0, high=MAX_COUNT
    )
    device: str = setting("auto", DEVICE_HELP)
    dtype: str = setting(
        "auto",
        "precision of matrix products; auto: bfloat16 if faster, float16 on older GPUs,"
        " else float32",
        choices=DTYPES,
    )
    compile: str = setting(
        "auto",
        "whether to use torch.compile; auto: for text on CUDA with Triton",
        choices=("auto", "true", "false"),
    )
    recompute: bool = setting(
        False, "compute each block a second time in the backward pass: slower, with less memory"
    )
    threads: int | None = count(None, THREADS_HELP, high=1024)
    resume: bool = setting(False, "continue from the newest valid checkpoint in out_dir")
    overwrite: bool = setting(False, "delete the run in out_dir before starting")
    dry_run: bool = setting(
        False, "print the size, memory, time and disk space of the run, then stop"
    )

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
                f"min_iters={self.min_iters} needs max_epochs, but {lengths[0]} is set:"
                " leave one of the two out"
            )
        return problems


@dataclass
class TrainSettings(RunSettings, DataSettings, LoraSettings, OptimSettings, ModelSettings):
    REPLACED_BY: ClassVar[dict[str, str]] = {  # settings of nanoGPT that don't exist here
        "min_lr": "--min_lr_fraction sets the last learning rate as a fraction of the peak",
        "decay_lr": "--schedule=constant turns the decay off",
        "lr_decay_iters": "the decay ends with the run; --decay_fraction sets its length",
        "eval_iters": "--eval_tokens limits the validation text, which is scored in full otherwise",
        "always_save_checkpoint": "the two newest checkpoints and the best model are always kept",
        "backend": "nccl on CUDA and gloo on a CPU are chosen automatically",
        "bias": "a new model has no biases",
    }
    configs: tuple[str, ...] = setting((), "config/FILE.py", positional=True)

    def problems(self) -> list[str]:
        if self.lora_rank and self.optimizer == "muon":
            return ["optimizer=muon is not for LoRA: use config/lora.py, or set --optimizer=adamw"]
        return []
