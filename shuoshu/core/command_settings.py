"""The settings of the other commands: one dataclass for each, read as those in settings.py."""

from __future__ import annotations

from dataclasses import dataclass

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

TRAINED = "trained"  # value of SampleSettings.system
PRECISION = 0.9  # default of SampleSettings.precision


@dataclass
class PrepareSettings(Settings):
    """prepare"""

    inputs: tuple[str, ...] = setting((), "FILE|FOLDER", positional=True)
    out: str | None = setting(None, "folder to write (none: data/<stem of the first input>)")
    tokenizer: str = setting(
        "bpe",
        "bpe: trained on your text; chars: one token per character; gpt2: GPT-2's, for"
        " English; or a folder with a tokenizer.json",
    )
    vocab_size: int | None = setting(
        None,
        "number of tokens in the vocabulary (none: by the size of the text; chars: all characters)",
        low=300,
        high=1_000_000,
    )
    clean: bool = setting(
        True,
        "remove advertisements, tables of contents and licences (false: only normalize the layout)",
    )
    show_removed: bool = setting(False, "list everything that was removed")
    encoding: str | None = setting(
        None, "encoding of the files: utf-8, gb18030, big5, cp1252 … (none: detected for each)"
    )
    skip_bad: bool = setting(False, "skip files that are not text, instead of stopping")
    val_fraction: float = number(
        0.05, "fraction of each book, at its end, for validation; cut at a chapter", high=0.9
    )
    seed: int = random_seed("seed that selects the text on which the tokenizer is trained")
    threads: int | None = count(None, THREADS_HELP, high=1024)


@dataclass
class PrepareSftSettings(Settings):
    """prepare"""

    inputs: tuple[str, ...] = setting((), "FILE|FOLDER", positional=True)
    out: str | None = setting(None, "folder to write (none: data/<stem of the first input>)")
    tokenizer: str | None = setting(
        None,
        "out_dir of the model to fine-tune, or a folder with its tokenizer.json (none:"
        " out-pretrain; for labels a tokenizer trained on the training texts)",
    )
    question: str | None = setting(
        None, 'template that makes the question: "评论内容：{review} 这条评论是正面还是负面？"'
    )
    answer: str | None = setting(None, 'template that makes the answer: "{label}"')
    system: str | None = setting(
        None, "template that makes a system message before the question (none: no such message)"
    )
    labels: str | None = setting(
        None, 'texts to write for the values of the answer column: "1=正面,0=负面"'
    )
    group: str | None = setting(
        None, "name of a column; rows with the same value in it stay in the same split"
    )
    too_long: str | None = setting(
        None,
        "a pair longer than block_size; error: stop; drop: leave it out; cut_question:"
        " shorten the middle of the question; window: spread the answer over several rows"
        " (none: error, for labels cut_question)",
        choices=("error", "drop", "cut_question", "window"),
    )
    block_size: int | None = setting(
        None,
        "tokens per row (none: the model's context, else 256; with a tokenizer trained here 64 to"
        " 512, by the texts)",
        low=16,
        high=1 << 20,
    )
    val_fraction: float = number(
        0.1,
        "fraction of the pairs (of those outside the test with --fold) for validation, unless the"
        " files name splits",
        high=0.9,
    )
    test_fraction: float = number(
        0.1,
        "fraction of the pairs for the test, unless the files name splits or --fold is the test",
        high=0.9,
    )
    folds: int | None = setting(
        None,
        "number of parts of equal size, one of which is the test; each row is in one part, and the"
        " same seed gives the same parts; needs --fold",
        low=2,
        high=1000,
    )
    fold: int | None = count(None, "number of the part that is the test: 1 to --folds")
    passages: int = setting(
        0, "number of passages of the book to put before each question (0: none)", low=0, high=20
    )
    book: tuple[str, ...] = setting(
        (),
        "book for --passages: a text file, or a folder with text or prepared text; repeatable"
        " (none: the text that the model in --tokenizer was trained on)",
    )
    encoding: str | None = setting(
        None, "encoding of the files: utf-8, gb18030, big5, cp1252 … (none: detected for each)"
    )
    show: int = setting(
        0, "number of training rows to print, with the trained part marked", low=0, high=MAX_COUNT
    )
    seed: int = random_seed("seed that assigns pairs to splits")

    def problems(self) -> list[str]:
        return self._passage_problems() + self._split_problems()

    def _passage_problems(self) -> list[str]:
        if self.book and not self.passages:
            return [f"book={self.book[0]} needs the number of passages: --passages=3"]
        if self.passages and self.too_long == "cut_question":
            return ["too_long=cut_question would cut the passages: use fewer --passages instead"]
        return []

    def _split_problems(self) -> list[str]:
        if self.folds is None and self.fold is None:
            is_full = self.val_fraction + self.test_fraction >= 1
            return ["val_fraction and test_fraction leave nothing to train on"] * is_full
        if self.folds is None:
            return [f"fold={self.fold} needs the number of folds: --folds=10"]
        if self.fold is None:
            return [f"folds={self.folds} needs the fold that is the test: --fold=1 to {self.folds}"]
        if self.fold > self.folds:
            return [f"fold={self.fold}: there are {self.folds} folds, 1 to {self.folds}"]
        return []


@dataclass
class SampleSettings(Settings):
    """sampling"""

    start: tuple[str, ...] = setting(
        (),
        "text to continue or to label, or question to answer; FILE:prompt.txt reads it from a file;"
        " repeatable",
        any_bytes=True,
    )
    chat: bool = setting(
        False, "answer questions, or label lines, from the terminal, one after another"
    )
    continue_text: bool = setting(
        False, "continue the text even with a model that answers questions or labels texts"
    )
    system: str = setting(
        TRAINED,
        "system message before a question; trained: the one of the model's training; none: no such"
        " message, but another model's chat template may still write its default",
    )
    out_dir: str | None = setting(
        None, "folder of the model or adapter (none: the newer of out-sft and out-pretrain)"
    )
    base: str | None = setting(None, BASE_HELP)
    num_samples: int = count(1, "number of texts per prompt", high=10_000)
    max_new_tokens: int = count(300, "maximum length of a text in tokens")
    temperature: float | None = number(
        None,
        "randomness; 0: always the most likely token; 1: the model's own probabilities"
        " (none: 0 for answers, else 0.8)",
        high=100.0,
    )
    top_k: int | None = count(200, "sample from the k most likely tokens (none: all)")
    top_p: float = number(
        1.0, "sample from the most likely tokens that together have this probability", high=1.0
    )
    min_p: float = number(
        0.0,
        "exclude tokens less likely than this fraction of the most likely one's probability",
        high=1.0,
    )
    repetition_penalty: float = number(
        1.0, "above 1, makes tokens less likely that the text already has", low=0.01, high=100.0
    )
    stop: tuple[str, ...] = setting((), "end a text before this string; repeatable")
    answer_by: str | None = setting(
        None,
        "how a question is answered; write: the model writes; recall: the model and look-ups choose"
        " among the taught answers; auto: recall if that is sure, write if that is surer, else"
        " decline; read: the model reads passages of the book first (none: auto where it answers"
        " validation questions better, else write)",
        choices=("write", "recall", "auto", "read"),
    )
    precision: float = number(
        PRECISION,
        "share of right answers among those that auto gives; it declines the others (0: none)",
        high=1.0,
    )
    sources: bool = setting(
        False,
        "show three passages of the book under each answer, on stderr; with --out in a column",
    )
    book: str | None = setting(
        None,
        "file or folder of the book whose passages are read or shown: .txt, .zip, .gz (none: the"
        " text behind the model)",
    )
    seed: int = random_seed("seed of the random numbers; the same seed gives the same text")
    infile: str | None = setting(
        None,
        "file of prompts or texts to label: .csv, .tsv, .json, .jsonl, or .txt with one per line;"
        " needs --out",
        alias="in",
    )
    outfile: str | None = setting(
        None,
        "file to write, .csv or .jsonl: the rows of --in with their texts, or with labels and their"
        " probabilities; columns of an answer: answer (empty if declined), and where taught answers"
        " are kept answered_by (recall, write, decline) and probability",
        alias="out",
    )
    batch_size: int = count(16, "number of texts to generate or label in parallel", high=1_000_000)
    device: str = setting("auto", DEVICE_HELP)
    dtype: str = setting(
        "auto", "precision of the weights; auto: bfloat16 on CUDA, else float32", choices=DTYPES
    )
    threads: int | None = count(None, THREADS_HELP, high=1024)


@dataclass
class EvalSettings(Settings):
    """evaluation"""

    out_dirs: tuple[str, ...] = setting((), "OUT_DIR", positional=True)
    compare: tuple[str, ...] = setting(
        (), "out_dir of another model to measure on the same data; repeatable"
    )
    base: str | None = setting(None, BASE_HELP)
    data: str | None = setting(
        None, "prepared data folder, or its name under data/ (none: the model's own)"
    )
    split: str | None = setting(
        None,
        "split to measure on (none: test if there is one, else val)",
        choices=("train", "val", "test", "untaught", "all"),
    )
    limit: int | None = count(
        None,
        "number of questions per split, each label in proportion, or of prompts on text (none: all;"
        " 40 prompts)",
    )
    beta: float = number(
        1.0, "weight of recall relative to precision in ROUGE-L", low=0.01, high=100.0
    )
    rouge: str = setting(
        "units",
        "what ROUGE-L compares; units: single characters, but whole Latin words and numbers;"
        " chars: all characters, spaces included",
        choices=("units", "chars"),
    )
    block_size: int | None = count(
        None,
        "on text, tokens per window (none: the model's block, but of another's model at most"
        " 1,024, because its context can be too long for the memory)",
    )
    stride: int | None = count(None, "on text, tokens between two windows (none: half a window)")
    max_new_tokens: int | None = count(
        None, "maximum length of a text in tokens (none: twice the longest reference; on text 100)"
    )
    batch_size: int = count(64, "number of texts to process in parallel", high=1_000_000)
    seed: int = random_seed("seed of the intervals, the continuations and the report's examples")
    device: str = setting("auto", DEVICE_HELP)
    dtype: str = setting(
        "float32",
        "precision of the weights; results of different precisions are not comparable",
        choices=DTYPES[1:],
    )
    threads: int | None = count(None, THREADS_HELP, high=1024)


@dataclass
class MergeSettings(Settings):
    """merging"""

    out_dirs: tuple[str, ...] = setting((), "OUT_DIR", positional=True)
    out: str | None = setting(None, "new folder for the merged model")
    base: str | None = setting(None, BASE_HELP)
    dtype: str = setting(
        "auto", "precision of the merged weights; auto: that of the base's file", choices=DTYPES
    )


@dataclass
class AppSettings(Settings):
    """page"""

    out_dirs: tuple[str, ...] = setting((), "OUT_DIR", positional=True)
    base: str | None = setting(None, BASE_HELP)
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in and needs --auth"
    )
    port: int | None = count(
        None, "port to listen on (none: the first free one from 7860)", high=65535
    )
    auth: tuple[str, ...] = setting(
        (), "user and password of a login, as USER:PASSWORD; repeatable"
    )
    share: bool = setting(False, "open a public address at Gradio for three days; needs --auth")
    insecure: bool = setting(False, "let other machines in without a login")
    queue: int = count(20, "maximum number of requests that wait for the model")
    max_new_tokens: int = count(500, "maximum length of a text in tokens")
    block_size: int = count(
        4096, "maximum length of what a model reads at once, in tokens; a longer one takes memory"
    )
    max_seconds: float = number(60.0, "maximum time for a text in seconds", low=1.0)
    device: str = setting("auto", DEVICE_HELP)
    dtype: str = setting(
        "auto", "precision of the weights; auto: bfloat16 on CUDA, else float32", choices=DTYPES
    )
    threads: int | None = count(None, THREADS_HELP)

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
