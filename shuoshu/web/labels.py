"""All texts that the page shows, in Chinese and English."""

from __future__ import annotations

from shuoshu.evaluation.html import bilingual

Text = tuple[str, str]  # Chinese, English

# Names of tabs, buttons and fields, and help for settings. Gradio shows the reader's language.
LABELS: dict[str, Text] = {
    # tabs and models
    "ask": ("问", "Ask"),
    "continue": ("续写", "Continue"),
    "judge": ("判断", "Judge"),
    "compare": ("对比", "Compare"),
    "training": ("训练", "Training"),
    "model": ("模型", "Model"),
    "left_model": ("左边的模型", "Left model"),
    "right_model": ("右边的模型", "Right model"),
    # Ask
    "question": ("问题", "Question"),
    "question_hint": ("问书里的人和事……（回车发送）", "Ask about the book … (Enter sends)"),
    "conversation": ("问答", "Conversation"),
    "send": ("发送", "Send"),
    "stop": ("停止", "Stop"),
    "retry": ("重答", "Retry"),
    "undo": ("撤回", "Undo"),
    "clear": ("清空", "Clear"),
    "inspect": ("看里面", "Look inside"),
    # Continue
    "story": ("故事", "Story"),
    "story_hint": ("写一个开头，或者留空……", "Write a beginning, or leave this empty …"),
    "continue_story": ("接着写", "Continue"),
    "write_three": ("三种写法", "Three versions"),
    "version_1": ("写法一", "Version 1"),
    "version_2": ("写法二", "Version 2"),
    "version_3": ("写法三", "Version 3"),
    "use_version": ("用这个", "Use this version"),
    # Judge
    "text": ("文字", "Text"),
    "text_hint": ("写或者贴一段文字……", "Write or paste a text …"),
    "example": ("例子", "Example"),
    "table": ("很多段文字", "Many texts"),
    "table_lines": ("一行一段文字", "One text per line"),
    "table_hint": ("最多 200 行……", "At most 200 lines …"),
    "judge_all": ("全部判断", "Judge all"),
    "csv": ("结果：CSV", "Result as CSV"),
    # Compare
    "prompt": ("问题或开头", "Question or beginning"),
    "prompt_hint": ("写一个问题或开头……（回车发送）", "A question or a beginning … (Enter sends)"),
    "run_both": ("一起写", "Run both"),
    "output": ("写出的文字", "Output"),
    # Training
    "refresh": ("刷新", "Refresh"),
    # settings
    "settings": ("设置", "Settings"),
    "system": ("系统提示", "System message"),
    "system_help": (
        "放在每个问题前面；一开始是模型训练时用的那句；留空：不用，但模型的模板可能还会加上默认的那句",
        "comes before each question; at first the one of the model's training;"
        " empty: none, but the model's chat template may still write its default",
    ),
    "answer_by": ("怎样回答", "How to answer"),
    "answer_by_help": (
        "自动：有把握就从教过的回答里选，不然自己写，再没把握就不答；读：先读书里的段落再写；"
        "默认：验证问题上更好的那一种",
        "Auto: chooses a taught answer if that is sure, else writes, else declines; Read: writes"
        " after reading passages of the book; Default: what was better on validation questions",
    ),
    "precision": ("准确率", "Precision"),
    "precision_help": (
        "自动：给出的回答里至少有这么多是对的，其余不答；0：都答",
        "Auto: the share of right answers among those it gives; it declines the others; 0: none",
    ),
    "temperature": ("温度", "Temperature"),
    "temperature_help": (
        "0：总是取最可能的词元；越高越出人意料",
        "0: always the most probable token; higher values are more surprising",
    ),
    "top_p": ("Top-p", "Top-p"),
    "top_p_help": (
        "从概率最高的词元取起，合计达到这个比例为止，只在其中选",
        "choose among the most probable tokens that together have this probability",
    ),
    "top_k": ("Top-k", "Top-k"),
    "top_k_help": (
        "只在概率最高的这么多个词元里选；0：不限",
        "choose among this number of most probable tokens; 0: no limit",
    ),
    "max_new_tokens": ("长度", "Length"),
    "max_new_tokens_help": (
        "最多写多少个词元（中文一个词元约一两个字）",
        "maximum number of tokens (in Chinese, a token is one or two characters)",
    ),
    "repetition_penalty": ("重复惩罚", "Repetition penalty"),
    "repetition_penalty_help": (
        "大于 1 时，出现过的词元不容易再出现",
        "above 1: tokens that occurred before become less probable",
    ),
    "seed": ("种子", "Seed"),
    "seed_help": (
        "种子相同，写出的文字就相同；留空：每次不同",
        "the same seed gives the same text; empty: a different text each time",
    ),
}

# Sentences on the page. Both languages are in its HTML, and page.css hides one.
TEXTS: dict[str, Text] = {
    "motto": ("问书，续书，看它学到了什么", "Ask the book, continue it, see what it learned"),
    "ask_below": (
        "在下面提问，或点一个它学过的问题。",
        "Ask below, or choose a question from its training data.",
    ),
    # the line under a text: why it ended ("end", "length", "time"), or a note on it
    "end": ("点一个回答，看模型写每一处时的概率。", "Click an answer to look inside it."),
    "length": (
        "到了长度上限，没有写完；上限可以在「设置」里改。",
        "Cut off at the length limit, which is in Settings.",
    ),
    "time": ("到了时间上限，停在这里。", "Cut off at the time limit."),
    "single_questions": (
        "这个模型学的是一问一答：每个问题单独作答，不看前面的。",
        "This model learned single questions: it does not see the earlier ones.",
    ),
    "recalled": ("可能对 · 从教过的回答里选的", "likely right · chosen among the taught answers"),
    "written": ("可能对 · 模型写的", "likely right · written by the model"),
    "declined": (
        "是最接近的回答正确的可能性：太低，所以不答",
        "is how likely the nearest answer is right: too little",
    ),
    "nearest_questions": ("教过的相近问题：", "Taught questions near it:"),
    "nearest_sentence": ("书里最接近的一句：", "The book's nearest sentence:"),
    "passages": ("书里说到它的地方（{0} 段）", "Where the book speaks of it ({0} passages)"),
    "raised_temperature": (
        "温度为 0 时，重答会一字不差，所以这次用了 0.8。",
        "At temperature 0 the answer would be the same, so 0.8 was used.",
    ),
    # Judge
    "labels_of": ("这个模型判断一段文字是哪一类：", "This model labels a text: "),
    "whole_prompt": (
        "训练时的文字是由几栏拼成的，请照样写：",
        "In its training, texts were made of several columns; write yours likewise: ",
    ),
    "other_labels": ("其余 {0} 类", "{0} others"),
    "this_model": ("这个模型", "This model"),
    "linear_model": ("线性模型", "Linear model"),
    "fitting_linear": (
        "正在训练线性模型，只有第一次要等……",
        "Fitting the linear model; only the first text waits for it …",
    ),
    "no_linear_data": (
        "它的训练数据不在这里，所以没有线性模型可比。",
        "Its training data is not here, so there is no linear model beside it.",
    ),
    "linear_data_too_long": (
        "训练数据超过 {0:,} 字，网页上不训练线性模型；eval_metrics.py 会比较。",
        "The training data has over {0:,} characters: too many to fit a linear model here;"
        " eval_metrics.py compares with one.",
    ),
    "text_cut": (
        "文字太长，模型只读了开头和结尾，中间以 … 代替。",
        "The text is too long: the model read its beginning and its end, with … for the middle.",
    ),
    "evidence_legend": ("把每一处去掉再判断一次：", "Judged again without each piece: "),
    "speaks_for": ("支持「{0}」", "for {0}"),
    "speaks_against": ("反对「{0}」", "against {0}"),
    "evidence_shade": ("颜色越深，影响越大。", "The darker, the stronger."),
    "strongest_pieces": (
        "影响最大的几处：去掉以后，「{0}」的概率从 {1} 变成——",
        "The strongest pieces: without one, the probability of {0} changes from {1} to",
    ),
    "single_piece": (
        "文字太短，没有可以去掉的部分。",
        "The text is too short to leave out a part.",
    ),
    "line": ("行", "Line"),
    "text_column": ("文字", "Text"),
    "label_column": ("标签", "Label"),
    "probability_column": ("概率", "Probability"),
    "judged_lines": ("已判断 {0} 行，共 {1} 行：", "{0} of {1} lines judged: "),
    # Look inside
    "trained_further": (
        "模型后来又训练过：下面是现在的模型给这段文字的概率。",
        "The model was trained further since then. This is how the present model sees the text.",
    ),
    "probability_legend": ("模型当时给每一处的概率：", "Probability of each piece: "),
    "choose_piece": (
        "点一处，看模型在这里还可能写什么（也可以用左右键移动）。",
        "Click a piece to see the alternatives (keyboard: left and right arrow).",
    ),
    "no_training_text": (
        "这里没有它的训练文本，无法检查有没有照抄。",
        "The training text is not here, so copies can't be found.",
    ),
    "training_text_too_long": (
        "训练文本超过 {0:,} 字，网页上不检查有没有照抄；eval_metrics.py 会检查。",
        "The training text has over {0:,} characters: too many to search for copies here;"
        " eval_metrics.py does it.",
    ),
    "no_copies": (
        "没有连续 {0} 字以上与训练文本完全相同的地方。",
        "No {0} characters in a row are word for word in the training text.",
    ),
    "copies": (
        "与训练文本完全相同的地方（连续 {0} 字以上）：",
        "Word for word in the training text ({0} characters or more):",
    ),
    "training_text": ("训练文本", "training text"),
    "characters": ("{0} 字", "{0} characters"),
}

# Error messages. Each is shown in both languages, because the API has no language.
ERRORS: dict[str, Text] = {
    "empty_question": ("还没有写问题。", "The question is empty."),
    "too_long": (
        "太长了：最多 {0:,} 字，这里有 {1:,} 字。",
        "Too long: at most {0:,} characters, this has {1:,}.",
    ),
    "too_many_tokens": (
        "问题（连同系统提示）太长：这个模型一次只读 {0:,} 个词元。",
        "The question, with any system message, is too long: this model reads {0:,} tokens at a"
        " time.",
    ),
    "not_text": ("应为一段文字，收到的是 {0}。", "Expected a text, got {0}."),
    "not_integer": ("{0} 应为整数，收到的是 {1}。", "{0} must be a whole number, got {1}."),
    "not_number": ("{0} 应为一个数，收到的是 {1}。", "{0} must be a number, got {1}."),
    "out_of_range": ("{0} 应在 {1} 与 {2} 之间。", "{0} must be between {1} and {2}."),
    "not_history": (
        "history 应为 [问题, 回答] 的列表。",
        "history must be a list of [question, answer] pairs.",
    ),
    "unknown_model": ("没有这个模型；可用的有：{0}", "Unknown model. Available: {0}"),
    "answers_nothing": (
        "这个模型不会回答问题。能回答的模型：{0}",
        "This model answers no questions. Models that do: {0}",
    ),
    "labels_nothing": (
        "这个模型不会判断文字是哪一类。会的模型：{0}",
        "This model labels no texts. Models that do: {0}",
    ),
    "writes_nothing": (
        "这个模型只判断文字是哪一类，不会写文字。会写的模型：{0}",
        "This model labels texts and writes none. Models that write: {0}",
    ),
    "unknown_way": (
        "没有这种回答方式；可用的有：{0}",
        "Unknown answer_by. Available: {0}",
    ),
    "recall_with_settings": (
        "从教过的回答里选时，不能改这些设置：{0}。",
        "Choosing among taught answers doesn't go with these settings: {0}.",
    ),
    "nothing_taught": (
        "这个模型旁边没有教过的回答；eval_metrics.py 可以重新准备。",
        "No taught answers are beside this model; eval_metrics.py makes them.",
    ),
    "no_book": (
        "这里没有它的训练文本，没有段落可读。",
        "The training text is not here, so there are no passages to read.",
    ),
    "declined_text": (
        "这个问题模型没有回答，没有可看的。",
        "The model declined this question: there is nothing to look into.",
    ),
    "not_texts": ("texts 应为文字的列表。", "texts must be a list of texts."),
    "too_many_texts": (
        "太多了：一次最多 {0:,} 段文字，这里有 {1:,} 段。",
        "Too many: at most {0:,} texts at a time, here are {1:,}.",
    ),
    "line_too_long": (
        "第 {0:,} 行太长：最多 {1:,} 字，这一行有 {2:,} 字。",
        "Line {0:,} is too long: at most {1:,} characters, it has {2:,}.",
    ),
    "no_text": ("还没有文字。", "There is no text yet."),
}

# Texts of page.js.
SCRIPT_TEXTS: dict[str, Text] = {
    "end_of_text": ("（结束）", "(end of text)"),
    "alternatives": ("。最可能的几个：", ". Most probable here:"),
    "change_language": (
        "切换语言会刷新网页，已经写的内容会丢失。要切换吗？",
        "Changing the language reloads the page and clears what was written. Change it?",
    ),
    "too_large": ("太长了，没有发送。", "Too long: it was not sent."),
    "queue_full": (
        "排队的人太多，请过一会儿再试。",
        "The queue is full: please try again in a moment.",
    ),
}


def text_html(key: str, *values: object) -> str:
    """HTML of one of TEXTS in both languages."""
    zh, en = TEXTS[key]
    return bilingual(zh.format(*values), en.format(*values))


def note_html(key: str, *values: object) -> str:
    """A paragraph with one of TEXTS."""
    return f'<p class="soft">{text_html(key, *values)}</p>'


def error_text(key: str, *values: object) -> str:
    """One of ERRORS in both languages."""
    zh, en = ERRORS[key]
    return f"{zh.format(*values)} · {en.format(*values)}"
