"""report.html: what an evaluation found, as one file for a browser, in Chinese and English, without a network."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence

from shuoshu.core.terminal import shorten
from shuoshu.evaluation.charts import run_panels
from shuoshu.evaluation.html import bilingual, escape_html, number

SHOWN, SAMPLED = (
    20,
    12,
)  # worst answers, and as many random ones; evaluations whose samples are shown
# name: (Chinese, English, format, +1 where more is better and −1 where less is, a note in Chinese, in English)
MEASURES: dict[str, tuple[str, str, str, int, str, str]] = {
    "accuracy": ("准确率", "Accuracy", "%", 1, "", ""),
    "macro_f1": ("宏平均 F1", "Macro-F1", ".3f", 1, "各类 F1 的平均", "mean F1 of the classes"),
    "rouge_l": (
        "ROUGE-L",
        "ROUGE-L",
        ".3f",
        1,
        "与参考答案的最长公共子序列，F1",
        "longest common subsequence with the reference, F1",
    ),
    "rouge_l_precision": ("ROUGE-L 精确率", "ROUGE-L precision", ".3f", 1, "", ""),
    "rouge_l_recall": ("ROUGE-L 召回率", "ROUGE-L recall", ".3f", 1, "", ""),
    "exact_match": (
        "完全一致",
        "Exact match",
        "%",
        1,
        "与参考答案一字不差",
        "the reference, to the letter",
    ),
    "char_f1": (
        "字符 F1",
        "Character F1",
        ".3f",
        1,
        "共有的字，不论次序",
        "shared characters in any order",
    ),
    "wrong_question_rate": (
        "答非所问率",
        "Wrong-question rate",
        "%",
        -1,
        "更像另一问的参考答案",
        "closer to another question's reference",
    ),
    "stop_rate": (
        "自行结束率",
        "Stop rate",
        "%",
        1,
        "在长度上限前说完",
        "ended before the length limit",
    ),
    "perplexity": (
        "困惑度",
        "Perplexity",
        ",.2f",
        -1,
        "平均每个词元有几个同样可能的候选",
        "equally likely candidates per token, on average",
    ),
    "perplexity_without_end": (
        "困惑度（不计结束符）",
        "Perplexity without end tokens",
        ",.2f",
        -1,
        "",
        "",
    ),
    "perplexity_disjoint": (
        "困惑度（窗口不重叠）",
        "Perplexity, disjoint windows",
        ",.2f",
        -1,
        "",
        "",
    ),
    "bits_per_char": (
        "每字比特",
        "Bits per character",
        ".3f",
        -1,
        "不同分词器之间可比",
        "comparable across tokenizers",
    ),
    "bits_per_byte": ("每字节比特", "Bits per byte", ".3f", -1, "", ""),
    "above_lookup_joined_rouge_l": (
        "高出查表（合并）",
        "Above the joined lookup",
        ".3f",
        1,
        "成对之差",
        "paired difference",
    ),
    "above_lookup_rouge_l": (
        "高出查表（最近）",
        "Above the nearest lookup",
        ".3f",
        1,
        "成对之差",
        "paired difference",
    ),
    "mean_length": ("平均字数", "Mean length", ",.1f", 0, "字数", "characters"),
    "reference_length": (
        "参考文本的平均字数",
        "Mean length of the references",
        ",.1f",
        0,
        "字数",
        "characters",
    ),
    "distinct_1": (
        "Distinct-1",
        "Distinct-1",
        ".3f",
        0,
        "不同的字占全部",
        "different units of all",
    ),
    "distinct_2": (
        "Distinct-2",
        "Distinct-2",
        ".3f",
        0,
        "不同的二字组占全部",
        "different pairs of all",
    ),
    "repetition": (
        "重复",
        "Repetition",
        "%",
        -1,
        "同一段里先前出现过的四字组",
        "runs of four that occurred before in the same text",
    ),
    "copy_longest": (
        "最长照抄",
        "Longest copy",
        ",.1f",
        0,
        "训练文本里原有的最长一段，字数",
        "longest span found verbatim in the training text, characters",
    ),
    "copy_rate": (
        "照抄率",
        "Copy rate",
        "%",
        0,
        "含长段照抄的比例",
        "share of texts with a long copied span",
    ),
}
BESIDE = {  # prefix of the name of a figure that a measure is held against
    "lookup_joined_": ("查表，同答案的问题合并", "lookup, an answer's questions joined"),
    "lookup_": ("查表，最近的问题", "lookup, nearest question"),
    "majority_": ("总选最多的一类", "always the commonest class"),
    "tfidf_": ("TF-IDF + 逻辑回归", "TF-IDF + logistic regression"),
    "reference_": ("参考文本", "the references"),
}
SPLITS = {
    "train": ("训练", "train"),
    "val": ("验证", "validation"),
    "test": ("测试", "test"),
    "untaught": ("未教过", "untaught"),
}
STOPS = {
    "end": ("自行结束", "ended"),
    "length": ("到了长度上限", "cut at the length limit"),
    "repeat": ("因重复而停", "stopped for repeating"),
}
STYLE = """
:root{color-scheme:light dark;--bg:#fdfcfa;--ink:#20262c;--soft:#59636d;--line:#d8d5ce;--box:#f4f2ec;--a:#b3362c;--b:#2460a7;--c:#5e7d3a;--mark:#ffe9a8}
@media screen and (prefers-color-scheme:dark){:root{--bg:#15181b;--ink:#e4e4e0;--soft:#a3abb3;--line:#3a4046;--box:#1e2226;--a:#f0857a;--b:#7db4f2;--c:#a9cc7d;
--mark:#574812}}*{box-sizing:border-box}body{margin:0 auto;padding:1rem 1.25rem 4rem;max-width:64rem;background:var(--bg);color:var(--ink);line-height:1.6;
font-family:system-ui,-apple-system,"Segoe UI","PingFang SC","Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC",sans-serif}
html.zh [lang=en],html.en [lang=zh],html:not(.zh,.en) button{display:none}html:not(.zh,.en) [lang=zh]+[lang=en]::before{content:" · "}h1{margin:.2rem 0;
font-size:1.7rem;overflow-wrap:anywhere}h2{margin:2.6rem 0 .6rem;font-size:1.25rem}h3{margin:1.4rem 0 .4rem;font-size:1rem}button{float:right;font:inherit;
padding:.3rem .9rem;min-height:2.75rem;border:1px solid var(--line);border-radius:.5rem;background:var(--box);color:inherit}small,.soft,caption{
color:var(--soft);font-size:.84rem}caption{text-align:start;padding:.3rem 0}.verdict{margin:1rem 0;padding:.8rem 1rem;border-inline-start:.3rem solid var(--b);
background:var(--box);font-size:1.12rem}.scroll{overflow-x:auto}table{border-collapse:collapse}tr.group th{padding-top:1.1rem;color:var(--b)}th,td{
padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:end;vertical-align:top;font-variant-numeric:tabular-nums}td{white-space:nowrap}th{
font-weight:600}th:first-child{text-align:start;padding-inline-start:0;min-width:9.5em}td small,th small{display:block;font-weight:400}tr.beside th{
font-weight:400;color:var(--soft);padding-inline-start:1em}.charts{display:flex;flex-wrap:wrap;align-items:end;gap:1rem}figure{margin:.5rem 0;flex:1 1 20rem}
svg{display:block;width:100%;max-width:38rem;height:auto;font-size:13px}svg.key{display:inline-block;width:26px;height:10px;margin-inline-end:.35rem}
text{fill:var(--soft)}text.ink{fill:var(--ink)}text.on{fill:var(--bg)}.grid{stroke:var(--line)}.curve{fill:none;stroke-width:2;stroke-linecap:round}
.thin{stroke:var(--soft);stroke-width:1}.a{stroke:var(--a)}.b{stroke:var(--b)}.c{stroke:var(--c);stroke-dasharray:6 5}circle{fill:var(--bg);stroke-width:2;
stroke-dasharray:none!important}figcaption>*{display:inline-block;margin-inline-end:1.1rem}.cell{fill:var(--b)}.right{fill:none;stroke:var(--ink);
stroke-width:2}ol{padding:0}li{list-style:none;margin:.8rem 0;padding:.7rem 1rem;border:1px solid var(--line);border-radius:.6rem;break-inside:avoid}dl{
display:grid;grid-template-columns:8.5em 1fr;gap:.25rem .8rem;margin:.2rem 0}dt{color:var(--soft);font-size:.9rem}dt,dd{margin:0;min-width:0;
overflow-wrap:anywhere}.text{white-space:pre-wrap;unicode-bidi:isolate}summary{cursor:pointer;min-height:2.75rem}mark{background:var(--mark);color:inherit;
text-decoration:underline dotted;text-underline-offset:.25em}sup{font-size:.65em;line-height:0}@media(max-width:34rem){body{padding-inline:.9rem}li dl{
display:block}li dd{margin-bottom:.45rem}table{font-size:.88rem}th,td{padding-inline:.35rem}th:first-child{min-width:7em}td small{white-space:normal;
font-size:.74rem}}html.framed button{display:none}
@media print{button{display:none}body{max-width:none;font-size:10pt}.scroll{overflow:visible}mark{print-color-adjust:exact}}
"""
SCRIPT = """const speak=l=>{document.documentElement.className=document.documentElement.lang=l};speak(/^zh/i.test(navigator.language)?"zh":"en");
addEventListener("beforeprint",()=>document.querySelectorAll("details").forEach(d=>d.open=true))"""
SWITCH = """<button type="button" onclick="speak(document.documentElement.lang=='zh'?'en':'zh')">\
<span lang="zh"><span lang="en-GB">English</span></span><span lang="en"><span lang="zh-Hans">中文</span></span></button>"""


def format_value(entry: dict, form: str, sign: str = "", key: str = "value") -> str:
    value = number(entry.get(key))
    told = (
        "—"
        if value is None
        else f"{100 * value:{sign}.1f}%"
        if form == "%"
        else f"{value:{sign}{form}}"
    )
    return told.replace("-", "−")


def interval(entry: dict, form: str, sign: str = "") -> str:
    """ "[low–high]", or nothing where the entry has none."""
    low, high = (format_value(entry, form, sign, key) for key in ("low", "high"))
    return "" if "—" in (low, high) else f"[{low}{', ' if sign else '–'}{high}]"


def table_cell(entry: dict | None, form: str, sign: str = "") -> str:
    """A value, its interval in small type below."""
    return format_value(entry or {}, form, sign) + (
        f"<small>{beneath}</small>" if (beneath := interval(entry or {}, form, sign)) else ""
    )


def split_baseline_prefix(name: str) -> tuple[str, str]:
    """(prefix, measure) of the name of a figure that a measure is held against, ("", name) of any other."""
    prefix = next(
        (
            p
            for p in BESIDE
            if name.startswith(p) and name not in MEASURES and name[len(p) :] in MEASURES
        ),
        "",
    )
    return prefix, name[len(prefix) :]


def sort_measures(names: Iterable[str]) -> list[str]:
    """As in MEASURES, each followed by what it is held against, unknown ones last."""
    order = [prefix + name for name in MEASURES for prefix in ("", *BESIDE)]
    return sorted(
        set(names), key=lambda name: (order.index(name) if name in order else len(order), name)
    )


def verdict(evaluation: dict, split: str) -> str:
    """The main figure in one sentence, beside what it has to beat."""
    measures = evaluation["measures"].get(split, {})
    name = next((name for name in ("accuracy", "rouge_l", "perplexity") if name in measures), None)
    if name is None:
        again = f"python eval_metrics.py {evaluation['model']}"
        return bilingual(f"还没有评测：{again}", f"Not measured yet: {again}")
    (zh, en, form, *_), entry, (zh_split, en_split) = (
        MEASURES[name],
        measures[name],
        SPLITS.get(split, (split, split)),
    )
    value, low, high = (number(entry.get(key)) for key in ("value", "low", "high"))
    zh, en = (
        f"{words} {format_value(entry, form)} {interval(entry, form)}".strip()
        for words in (f"{zh}（{zh_split}）", f"{en} on {en_split}")
    )
    rivals = [
        (rival, p)
        for p in BESIDE
        if p != "reference_"
        and (rival := number(measures.get(p + name, {}).get("value"))) is not None
    ]
    if rivals and value is not None:
        rival, prefix = max(rivals)
        level, told = (
            None not in (low, high) and low <= rival <= high,
            format_value({"value": abs(value - rival)}, form).split("%"),
        )
        zh += f"，比最强的基线（{BESIDE[prefix][0]}）{'高' if value >= rival else '低'} {' 个百分点'.join(told)}"
        en += f", {' points'.join(told)} {'above' if value >= rival else 'below'} the strongest baseline ({BESIDE[prefix][1]})"
        zh, en = zh + "，差距在区间之内" * level, en + ", a gap within the interval" * level
    for other in evaluation.get("compare") or []:
        if change := other.get("difference", {}).get(split, {}).get(name):
            told = f"{format_value(change, form, '+')} {interval(change, form, '+')}".strip()
            zh, en = (
                f"{zh}；与 {other['model']} 相差 {told}",
                f"{en}; {told} against {other['model']}",
            )
    return bilingual(zh + "。", en + ".")


def table(caption: tuple[str, str], head: Sequence[str], rows: Iterable[str]) -> str:
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{escape_html(" · ".join(caption))}"><table><caption>{bilingual(*caption)}</caption>
<thead><tr>{"".join(f'<th scope="col">{words}</th>' for words in head)}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def row(head: str, cells: Iterable[str], kind: str = "") -> str:
    return (
        f'<tr class="{kind}"><th scope="row">{head}</th>'
        + "".join(f"<td>{words}</td>" for words in cells)
        + "</tr>\n"
    )


def measures_table(measures: dict, counts: dict) -> str:
    rows, head = [], [bilingual("指标", "Measure")]
    for split in measures:
        asked = number(counts.get(split, {}).get("questions"))
        head.append(
            bilingual(*SPLITS.get(split, (split, split)))
            + (
                f"<small>{bilingual(f'{asked:,.0f} 问', f'{asked:,.0f} questions')}</small>"
                if asked
                else ""
            )
        )
    for name in sort_measures(name for split in measures.values() for name in split):
        prefix, base = split_baseline_prefix(name)
        zh, en, form, _, *note = MEASURES.get(base, (name, name, ".3f", 0, "", ""))
        words = bilingual(zh, en) + (f"<small>{bilingual(*note)}</small>" if note[1] else "")
        words = (
            bilingual(f"{zh}（{BESIDE[prefix][0]}）", f"{en} ({BESIDE[prefix][1]})")
            if prefix
            else words
        )
        rows.append(
            row(
                words,
                [table_cell(split.get(name), form) for split in measures.values()],
                "beside" if prefix else "",
            )
        )
    return table(("方括号内是 95% 置信区间", "In brackets: 95% confidence intervals"), head, rows)


def comparison(model: str, measures: dict, other: dict) -> str:
    """Before and after on the same rows, without what no model changes: baselines and references."""
    rows, head = (
        [],
        [
            bilingual("指标", "Measure"),
            escape_html(other["model"]),
            escape_html(model),
            bilingual("差", "Difference"),
        ],
    )
    for split, before in other["measures"].items():
        after, changes = measures.get(split, {}), other.get("difference", {}).get(split, {})
        rows.append(
            f'<tr class="group"><th scope="rowgroup" colspan="4">{bilingual(*SPLITS.get(split, (split, split)))}</th></tr>\n'
        )
        for name in sort_measures(
            name
            for name in before
            if name in after and not split_baseline_prefix(name)[0] and name != "reference_length"
        ):
            (zh, en, form, *_), change = (
                MEASURES.get(name, (name, name, ".3f")),
                changes.get(name) or {},
            )
            rows.append(
                row(
                    bilingual(zh, en),
                    [
                        table_cell(before[name], form),
                        table_cell(after[name], form),
                        table_cell(change, form, "+") + significance(name, change),
                    ],
                )
            )
    models = f"{other['model']} → {model}"
    return table(
        (
            f"{models}，同样的数据；差为成对比较，% 指百分点",
            f"{models} on the same data; differences are paired, % means points",
        ),
        head,
        rows,
    )


def significance(name: str, change: dict) -> str:
    """What a paired difference says: nothing while its interval holds 0."""
    low, high, better = (
        number(change.get("low")),
        number(change.get("high")),
        MEASURES[name][3] if name in MEASURES else 0,
    )
    if low is None or high is None:
        return ""
    side = 2 if low <= 0 <= high else better * (1 if low > 0 else -1)
    return bilingual(
        *{
            2: ("≈ 分不出", "≈ not told apart"),
            1: ("▲ 更好", "▲ better"),
            0: ("≠ 不同", "≠ differs"),
            -1: ("▼ 更差", "▼ worse"),
        }[side]
    )


def confusion(split: str, classes: dict) -> str:
    """The matrix as a picture, shaded by the share of a row, and the classes' figures as a table."""
    labels, cells, n = classes["labels"], [], 72
    for i, (actual, counts) in enumerate(zip(labels, classes["confusion"], strict=True)):
        middle = 46 + n * i + n / 2
        cells.append(
            f'<text class="ink" x="{128 + n * (i + 0.5)}" y="38" text-anchor="middle">{escape_html(shorten(actual, 9))}</text>'
        )
        cells.append(
            f'<text class="ink" x="120" y="{middle + 4}" text-anchor="end">{escape_html(shorten(actual, 15))}</text>'
        )
        for j, count in enumerate(counts):
            share, x = count / (sum(counts) or 1), 128 + n * j
            cells.append(
                f'<rect class="cell" x="{x}" y="{46 + n * i}" width="{n}" height="{n}" fill-opacity="{share:.2f}"/>'
            )
            cells.append(
                f'<text class="{"on" if share > 0.5 else "ink"}" x="{x + n / 2}" y="{middle + 4}" text-anchor="middle">{count:,} · {share:.0%}</text>'
            )
    cells += [
        f'<rect class="right" x="{129 + n * i}" y="{47 + n * i}" width="{n - 2}" height="{n - 2}"/>'
        for i in range(len(labels))
    ]
    wide, high = 132 + n * len(labels), 50 + n * len(labels)
    name, keys = "混淆矩阵 · Confusion matrix", ("precision", "recall", "f1")
    words = bilingual(
        "行：真实类别，列：模型所选。深浅：占该行的比例；框：选对。",
        "Rows: actual, columns: chosen. Shade: share of the row; framed: right.",
    )
    head = [
        bilingual("类别", "Class"),
        bilingual("精确率", "Precision"),
        bilingual("召回率", "Recall"),
        "F1",
        bilingual("数目", "Support"),
    ]
    each = {label: classes.get("per_class", {}).get(label, {}) for label in labels}
    rows = [
        row(
            escape_html(label),
            [
                *(format_value(entry, ".3f", key=key) for key in keys),
                format_value(entry, ",.0f", key="support"),
            ],
        )
        for label, entry in each.items()
    ]
    drawn = f'<svg style="width:{wide}px;max-width:none" viewBox="0 0 {wide} {high}" role="img" aria-label="{name}">{"".join(cells)}</svg>'
    picture = f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{name}">{drawn}</div><figcaption class="soft">{words}</figcaption></figure>'
    return f"<h3>{bilingual(*SPLITS.get(split, (split, split)))}</h3>{picture}" + table(
        ("各类", "By class"), head, rows
    )


def samples(records: list[dict]) -> str:
    """What one prompt or a few questions were given in the course of training, evenly over it, the last first and open."""
    by_step: dict[float, list[dict]] = {}
    evals = {
        number(record.get("step")): record for record in records if record.get("kind") == "eval"
    }
    for record in records:
        if record.get("kind") == "sample" and (step := number(record.get("step"))) is not None:
            by_step.setdefault(step, []).append(record)
    steps = list(by_step)[::-1]
    chosen_steps = (
        [steps[i * (len(steps) - 1) // (SAMPLED - 1)] for i in range(SAMPLED)]
        if len(steps) > SAMPLED
        else steps
    )
    told = ""
    for step in chosen_steps:
        body, found = "", evals.get(step, {})
        for record in by_step[step]:
            asked, wrote, wanted = (record.get(key) for key in ("prompt", "text", "reference"))
            lines = [
                ("问题", "Question", asked),
                ("模型", "Model", wrote),
                ("参考答案", "Reference", wanted),
            ]
            lines = (
                lines
                if wanted is not None
                else [("开头", "Prompt", asked), ("模型", "Model", wrote)]
            )
            facts = "".join(
                f'<dt>{bilingual(zh, en)}</dt><dd><div class="text">{escape_html(value)}</div></dd>'
                for zh, en, value in lines
            )
            body += f"<li><dl>{facts}</dl></li>"
        figures = (
            ("验证损失", "validation loss", "val_loss"),
            ("ROUGE-L", "ROUGE-L", "val_rouge_l"),
        )
        head = bilingual(f"第 {step:,.0f} 步", f"Step {step:,.0f}")
        head += "".join(
            f" · {bilingual(zh, en)} {format_value(found, '.3f', key=key)}"
            for zh, en, key in figures
            if number(found.get(key)) is not None
        )
        told += (
            f"<details{' open' * (not told)}><summary>{head}</summary><ol>{body}</ol></details>\n"
        )
    return told


def worst_and_random(answers: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """(the worst by the right label's probability or by ROUGE-L, others at random in their own order)."""
    scores = [
        number((answer.get("probabilities") or {}).get(answer["reference"], answer.get("rouge_l")))
        for answer in answers
    ]
    worst = sorted(
        (i for i, score in enumerate(scores) if score is not None), key=scores.__getitem__
    )[:SHOWN]
    rest = sorted(set(range(len(answers))) - set(worst))
    return [answers[i] for i in worst], [
        answers[i] for i in sorted(random.Random(seed).sample(rest, min(SHOWN, len(rest))))
    ]


def highlight_copies(answer: str, copied: Iterable[Sequence]) -> str:
    """The answer, each copied span marked and numbered, and where the spans stand."""
    parts, sources, done = [], [], 0
    for start, end, title in sorted(copied, key=lambda span: span[:2]):
        start, end = max(start, done), min(end, len(answer))
        if start < end:
            sources.append(
                f"{len(sources) + 1} "
                + (escape_html(title) if title else bilingual("训练文本", "training text"))
            )
            parts.append(
                f"{escape_html(answer[done:start])}<mark>{escape_html(answer[start:end])}<sup>{len(sources)}</sup></mark>"
            )
            done = end
    told = (
        f"<small>{bilingual('照抄自：', 'copied from:')} {'; '.join(sources)}</small>"
        if sources
        else ""
    )
    rest = escape_html(answer[done:]) if answer else f"<em>{bilingual('（空）', '(empty)')}</em>"
    return f'<div class="text">{"".join(parts)}{rest}</div>{told}'


def answer_card(answer: dict) -> str:
    """One answer with all that is known of it."""
    signs = [bilingual("第 {row} 行".format(**answer), "Row {row}".format(**answer))]
    signs += [
        f"{bilingual(*MEASURES[key][:2])} {format_value(answer, '.3f', key=key)}"
        for key in ("rouge_l", "char_f1")
        if number(answer.get(key)) is not None
    ]
    stop = answer.get("stop")
    signs += [bilingual("✓ 完全一致", "✓ exact")] * bool(answer.get("exact")) + [
        bilingual(*STOPS.get(stop, (stop, stop)))
    ] * bool(stop)
    scored = "rouge_l" in answer or "probabilities" in answer
    asked, wanted = (
        (("问题", "Question"), ("参考答案", "Reference"))
        if scored
        else (("开头", "Prompt"), ("原文", "True continuation"))
    )
    lines = [
        (bilingual(*asked), answer["question"]),
        (bilingual(*wanted), answer["reference"]),
        (bilingual("模型", "Model"), None),
    ]
    if answer.get("closer_to") and answer["closer_to"] == answer["answer"]:
        signs.append(
            bilingual("✗ 正是另一问的参考答案", "✗ another question's reference, word for word")
        )
    elif answer.get("closer_to"):
        lines.append((bilingual("更像另一问的", "Closer to another's"), answer["closer_to"]))
    odds = sorted(
        (answer.get("probabilities") or {}).items(), key=lambda pair: -(number(pair[1]) or 0)
    )[:10]
    lines += [
        (
            bilingual("概率", "Probabilities"),
            " · ".join(f"{label} {format_value({'value': p}, '%')}" for label, p in odds),
        )
    ] * bool(odds)
    lines += [(escape_html(model), other) for model, other in (answer.get("others") or {}).items()]
    told = [
        highlight_copies(answer["answer"], answer.get("copied") or [])
        if value is None
        else f'<div class="text">{escape_html(value)}</div>'
        for _, value in lines
    ]
    body = "".join(
        f"<dt>{words}</dt><dd>{value}</dd>\n" for (words, _), value in zip(lines, told, strict=True)
    )
    return f'<li><div class="soft">{" · ".join(signs)}</div><dl>{body}</dl></li>\n'


def report_html(
    evaluation: dict, answers: list[dict], runs: list[tuple[str, list[dict]]], seed: int = 0
) -> str:
    """The whole page, which its own policy keeps off the network; its examples come from the test split where there is one."""
    model, measures = evaluation["model"], evaluation["measures"]
    split = next((split for split in ("test", "val", *measures) if split in measures), "")
    measures = {
        name: measures[name] for name in sorted(measures, key=lambda name: name != split)
    }  # a phone shows the first column
    of = next(
        (
            name
            for name in (split, *(answer["split"] for answer in answers))
            if any(answer["split"] == name for answer in answers)
        ),
        "",
    )
    worst, others = worst_and_random([answer for answer in answers if answer["split"] == of], seed)
    zh_of, en_of = SPLITS.get(of, (of, of))
    folded = (
        ("definitions", "定义", "Definitions"),
        ("data", "数据", "Data"),
        ("counts", "数量", "Counts"),
    )
    folded += (
        ("settings", "评测设置", "Settings of the evaluation"),
        ("training", "训练设置", "Settings of the training"),
        ("machine", "机器", "Machine"),
    )
    details = ""
    for key, zh, en in folded:
        values = (
            (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in (evaluation.get(key) or {}).items()
        )
        facts = "".join(
            f"<dt>{escape_html(name)}</dt><dd>{escape_html(value)}</dd>\n" for name, value in values
        )
        details += f"<h3>{bilingual(zh, en)}</h3><dl>{facts}</dl>" if facts else ""
    sections = [
        (
            ("指标", "Measures"),
            measures_table(measures, evaluation.get("counts") or {}) if measures else "",
        ),
        (
            ("前后比较", "Before and after"),
            "".join(
                comparison(model, measures, other) for other in evaluation.get("compare") or []
            ),
        ),
        (("训练曲线", "Training curves"), "".join(run_panels(*run) for run in runs)),
        (
            ("混淆矩阵", "Confusion matrix"),
            "".join(
                confusion(name, entry) for name, entry in (evaluation.get("classes") or {}).items()
            ),
        ),
        (("历次样文", "Samples through time"), samples(runs[0][1]) if runs else ""),
        (
            (f"最差的 {len(worst)} 个（{zh_of}）", f"The worst {len(worst)} ({en_of})"),
            "".join(map(answer_card, worst)),
        ),
        (
            (f"随机的 {len(others)} 个（{zh_of}）", f"{len(others)} at random ({en_of})"),
            "".join(map(answer_card, others)),
        ),
    ]
    sections = [
        (words, f"<ol>{body}</ol>" if body.startswith("<li>") else body) for words, body in sections
    ]
    told = "\n".join(
        f"<section><h2>{bilingual(*words)}</h2>{body}</section>" for words, body in sections if body
    )
    origin = (
        evaluation.get("step", "—"),
        (evaluation.get("data") or {}).get("folder"),
        evaluation.get("date"),
    )
    return f"""<!doctype html>
<html lang="zh"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape_html(model)} · Shuoshu</title><style>{STYLE}</style><script>{SCRIPT}</script></head><body>
<header>{SWITCH}<div class="soft">{bilingual("说书 · 评测报告", "Shuoshu · evaluation")}</div><h1>{escape_html(model)}</h1>
<div class="soft">{bilingual("步数", "Step")} {" · ".join(escape_html(fact) for fact in origin if fact not in (None, ""))}</div></header>
<main><p class="verdict">{verdict(evaluation, split)}</p>
{told}
<section><h2>{bilingual("怎样得来", "How it was made")}</h2>
<details><summary>{bilingual("定义、数据、设置、机器", "Definitions, data, settings, machine")}</summary>{details}</details></section>
</main></body></html>
"""
