"""How report.html names and formats each measure, in Chinese and English."""

from __future__ import annotations

from typing import NamedTuple

Bilingual = tuple[str, str]  # Chinese, English


class Measure(NamedTuple):
    label: Bilingual
    form: str  # a format specification, or % for a share
    better: int = 0  # 1: more is better, -1: less is better, 0: neither
    note: Bilingual | None = None


RIGHT = 0.5  # an answer counts as right from this ROUGE-L on
CHARACTER_UNIT = ("字数", "characters")
PAIRED = ("成对比较的差", "paired difference")
MEASURES = {  # in the order of the report
    "accuracy": Measure(("准确率", "Accuracy"), "%", 1),
    "macro_f1": Measure(
        ("宏平均 F1", "Macro-F1"), ".3f", 1, ("各类 F1 的平均", "mean F1 of the classes")
    ),
    "list_f1": Measure(
        ("列表 F1", "List F1"),
        ".3f",
        1,
        ("列表各项的集合，不论次序，逐题平均", "items as a set, mean over the questions"),
    ),
    "list_precision": Measure(("列表精确率", "List precision"), ".3f", 1),
    "list_recall": Measure(("列表召回率", "List recall"), ".3f", 1),
    "log_loss": Measure(("对数损失", "Log-loss"), ".3f", -1, ("每篇的奈特数", "nats per text")),
    "calibration_error": Measure(
        ("校准误差", "Calibration error"),
        ".3f",
        -1,
        ("所报概率与正确率的平均差距", "mean gap between probability and accuracy"),
    ),
    "roc_auc": Measure(
        ("ROC-AUC", "ROC-AUC"),
        ".3f",
        1,
        ("正类得分高于负类的概率", "chance that a text of one label scores above one of the other"),
    ),
    "above_linear_accuracy": Measure(("比线性模型高出", "Above the linear model"), "%", 1, PAIRED),
    "rouge_l": Measure(
        ("ROUGE-L", "ROUGE-L"),
        ".3f",
        1,
        (
            "与参考答案的最长公共子序列，F1",
            "longest common subsequence with the reference, F1",
        ),
    ),
    "rouge_l_precision": Measure(("ROUGE-L 精确率", "ROUGE-L precision"), ".3f", 1),
    "rouge_l_recall": Measure(("ROUGE-L 召回率", "ROUGE-L recall"), ".3f", 1),
    "exact_match": Measure(
        ("完全一致", "Exact match"), "%", 1, ("与参考答案一字不差", "the reference, to the letter")
    ),
    "char_f1": Measure(
        ("字符 F1", "Character F1"),
        ".3f",
        1,
        ("相同的字，不论次序", "shared characters in any order"),
    ),
    "wrong_question_rate": Measure(
        ("答非所问率", "Wrong-question rate"),
        "%",
        -1,
        ("更像另一个问题的参考答案", "closer to another question's reference"),
    ),
    "stop_rate": Measure(
        ("自行结束率", "Stop rate"), "%", 1, ("在长度上限前说完", "ended before the length limit")
    ),
    "answered_rate": Measure(
        ("作答率", "Answered"),
        "%",
        0,
        ("其余的问题它说没有教过", "it says of the other questions that it wasn't taught them"),
    ),
    "right_rate": Measure(
        ("作答时的正确率", "Right when it answers"),
        "%",
        1,
        ("ROUGE-L 不低于 0.5 算对", "with a ROUGE-L of 0.5 or more"),
    ),
    "auto_above_lookups_rouge_l": Measure(
        ("回想比最强的查表高出", "Recall above the strongest lookup"), ".3f", 1, PAIRED
    ),
    "untaught_auroc": Measure(
        ("分辨未教过的", "Tells untaught questions"),
        ".3f",
        1,
        (
            "测试集答对的比未教过的更有把握的机会",
            "chance that a right answer of test is surer than one to an untaught question",
        ),
    ),
    "confidence_auroc": Measure(
        ("分辨对错", "Tells right from wrong"),
        ".3f",
        1,
        ("答对的比答错的更有把握的机会", "chance that a right answer is surer than a wrong one"),
    ),
    "mixed_calibration_error": Measure(
        ("校准误差（与测试集合计）", "Calibration error, with test"),
        ".3f",
        -1,
        ("测试集与未教过的各占一半", "test and untaught questions count half each"),
    ),
    "untaught_declined": Measure(
        ("拒答率", "Declined"),
        "%",
        1,
        (
            "若测试集的问题答九成",
            "at the threshold that answers 90% of the test questions",
        ),
    ),
    "perplexity": Measure(
        ("困惑度", "Perplexity"),
        ",.2f",
        -1,
        (
            "平均每个词元有几个同样可能的候选",
            "equally likely candidates per token, on average",
        ),
    ),
    "perplexity_without_end": Measure(
        ("困惑度（不计结束符）", "Perplexity without end tokens"), ",.2f", -1
    ),
    "perplexity_disjoint": Measure(
        ("困惑度（窗口不重叠）", "Perplexity, disjoint windows"), ",.2f", -1
    ),
    "bits_per_char": Measure(
        ("每字比特", "Bits per character"),
        ".3f",
        -1,
        ("不同分词器之间可比", "comparable across tokenizers"),
    ),
    "bits_per_byte": Measure(("每字节比特", "Bits per byte"), ".3f", -1),
    "above_tfidf_list_f1": Measure(
        ("列表 F1 比 TF-IDF 高出", "List F1 above TF-IDF"), ".3f", 1, PAIRED
    ),
    "above_lookup_answers_rouge_l": Measure(
        ("比查表（含答案）高出", "Above the lookup with answers"), ".3f", 1, PAIRED
    ),
    "above_lookup_joined_rouge_l": Measure(
        ("比查表（合并）高出", "Above the joined lookup"), ".3f", 1, PAIRED
    ),
    "above_lookup_rouge_l": Measure(
        ("比查表（最近）高出", "Above the nearest lookup"), ".3f", 1, PAIRED
    ),
    "mean_length": Measure(("平均字数", "Mean length"), ",.1f", 0, CHARACTER_UNIT),
    "reference_length": Measure(
        ("参考文本的平均字数", "Mean length of the references"), ",.1f", 0, CHARACTER_UNIT
    ),
    "distinct_1": Measure(
        ("Distinct-1", "Distinct-1"), ".3f", 0, ("不同的字所占比例", "different units of all")
    ),
    "distinct_2": Measure(
        ("Distinct-2", "Distinct-2"), ".3f", 0, ("不同的二字组所占比例", "different pairs of all")
    ),
    "repetition": Measure(
        ("重复", "Repetition"),
        "%",
        -1,
        (
            "同一段里前面出现过的四字组所占比例",
            "runs of four that occurred before in the same text",
        ),
    ),
    "copy_longest": Measure(
        ("最长照抄", "Longest copy"),
        ",.1f",
        0,
        (
            "与训练文本完全相同的最长一段，字数",
            "longest span found verbatim in the training text, characters",
        ),
    ),
    "copy_rate": Measure(
        ("照抄率", "Copy rate"),
        "%",
        0,
        ("含长段照抄的比例", "share of texts with a long copied span"),
    ),
}
REFERENCE_PREFIX, TOGETHER_PREFIX = "reference_", "together_"  # of what is no rival
AUTO_PREFIX = "auto_"  # no rival, either: the same model's answers
QUOTE_PREFIX = "quote_"  # likewise: what it shows when it declines
BASELINES = {  # prefix of a measure's name: what was measured instead of the model
    "lookup_answers_": ("查表，问题与答案合并", "lookup, an answer and its questions joined"),
    "lookup_joined_": ("查表，同答案的问题合并", "lookup, an answer's questions joined"),
    "lookup_": ("查表，最近的问题", "lookup, nearest question"),
    AUTO_PREFIX: ("回想或写", "recalled or written"),
    QUOTE_PREFIX: ("书里最接近的一句", "the nearest sentence of the book"),
    "majority_": ("总选最常见的一类", "always the most frequent class"),
    "linear_": ("最好的线性模型", "the best linear model"),
    TOGETHER_PREFIX: ("与线性模型合用", "together with the linear model"),
    "tfidf_": ("TF-IDF 挑选的词", "terms picked by TF-IDF"),
    REFERENCE_PREFIX: ("参考文本", "the references"),
}
SPLITS = {
    "train": ("训练", "train"),
    "val": ("验证", "validation"),
    "test": ("测试", "test"),
    "untaught": ("未教过", "untaught"),
}
STOP_REASONS = {
    "end": ("自行结束", "ended"),
    "length": ("到了长度上限", "cut at the length limit"),
    "repeat": ("因重复而停", "stopped for repeating"),
}


def measure_of(name: str) -> Measure:
    """The measure's entry; an unknown one is shown under its own name."""
    return MEASURES.get(name) or Measure((name, name), ".3f")


def split_label(split: str) -> Bilingual:
    return SPLITS.get(split, (split, split))
