"""What the page says, in Chinese and English."""

WORDS: dict[str, tuple[str, str]] = {
    # tabs, models
    "ask": ("问", "Ask"),
    "continue": ("续写", "Continue"),
    "compare": ("对比", "Compare"),
    "training": ("训练", "Training"),
    "model": ("模型", "Model"),
    "first": ("左边", "On the left"),
    "second": ("右边", "On the right"),
    # asking
    "question": ("问题", "Question"),
    "question_hint": ("问书里的人和事……（回车发送）", "Ask the book … (Enter sends)"),
    "talk": ("问答", "Conversation"),
    "send": ("发送", "Send"),
    "stop": ("停", "Stop"),
    "retry": ("重答", "Retry"),
    "undo": ("撤回", "Undo"),
    "clear": ("清空", "Clear"),
    # continuing
    "story": ("故事", "Story"),
    "story_hint": ("写一个开头，或者留空……", "Write how it begins, or nothing at all …"),
    "go_on": ("接着写", "Go on"),
    "three": ("三种写法", "Three versions"),
    "version_1": ("写法一", "Version 1"),
    "version_2": ("写法二", "Version 2"),
    "version_3": ("写法三", "Version 3"),
    "take": ("用这个", "Take this one"),
    # comparing
    "prompt": ("问题或开头", "Question or beginning"),
    "run": ("一起写", "Let both write"),
    "answer": ("写出的", "What it wrote"),
    # looking inside
    "inside": ("看里面", "Look inside"),
    "refresh": ("刷新", "Refresh"),
    # settings, each with its meaning
    "settings": ("设置", "Settings"),
    "temperature": ("温度", "Temperature"),
    "temperature_help": (
        "0：每处都取最可能的；越高越出人意料",
        "0: the likeliest every time; the higher, the more surprising",
    ),
    "top_p": ("Top-p", "Top-p"),
    "top_p_help": (
        "只在合起来占这么多概率的候选里挑",
        "choose among the likeliest that together hold this share of probability",
    ),
    "top_k": ("Top-k", "Top-k"),
    "top_k_help": (
        "只在最可能的这么多个里挑；0：不限",
        "choose among so many of the likeliest; 0: among all",
    ),
    "max_new_tokens": ("长度", "Length"),
    "max_new_tokens_help": (
        "最多写多少个词元（中文一个约一两个字）",
        "so many tokens at most (one is a character or two of Chinese)",
    ),
    "repetition_penalty": ("重复惩罚", "Repetition penalty"),
    "repetition_penalty_help": (
        "大于 1：已经出现过的更少再用",
        "above 1: what stands there already becomes less likely",
    ),
    "seed": ("种子", "Seed"),
    "seed_help": (
        "同样的种子写出同样的文字；空着：每次不同",
        "the same seed writes the same text; empty: another one each time",
    ),
}

SAID: dict[str, tuple[str, str]] = {
    # under a text, once it is done
    "end": ("点哪个回答，就看哪个的里面。", "Choose an answer to look inside it."),
    "stop": ("", ""),
    "length": (
        "到了长度上限，没有写完。长度在「设置」里。",
        "Cut off at the length that Settings allow.",
    ),
    "time": ("到了时间上限，停在这里。", "Stopped at the time limit."),
    "trained": (
        "模型后来又训练过：下面是它现在怎么看这段文字。",
        "The model was trained further since: this is how it sees the text now.",
    ),
    "warmer": (
        "温度是 0 时重答只会一字不差：这次用了 0.8。",
        "At temperature 0 it would only repeat itself: this time 0.8 was used.",
    ),
    "alone": (
        "这个模型学的是一问一答：每个问题单独作答，不看前面的。",
        "It learned single questions: each is answered by itself, without what came before.",
    ),
    # errors
    "empty": ("还没有写问题。", "There is no question yet."),
    "long": (
        "太长了：最多 {0:,} 字，这里有 {1:,}。",
        "Too long: {0:,} characters at most, there are {1:,}.",
    ),
    "no_text": ("要的是一段文字，收到的是 {0}。", "A text is wanted, this is {0}."),
    "no_whole": ("{0} 要的是整数，收到的是 {1}。", "{0} wants a whole number, this is {1}."),
    "no_number": ("{0} 要的是一个数，收到的是 {1}。", "{0} wants a number, this is {1}."),
    "bounds": ("{0} 应在 {1} 与 {2} 之间。", "{0} must lie between {1} and {2}."),
    "no_model": ("没有这个模型；有的是：{0}", "There is no such model; there are: {0}"),
    "no_answers": (
        "这个模型只会续写，不会答题；会答题的：{0}",
        "This model continues text and answers no questions; these do: {0}",
    ),
    "history": (
        "history 要的是一串 [问, 答] 对。",
        "history wants a list of [question, answer] pairs.",
    ),
    "nothing": ("还没有可看的文字。", "There is no text to look into yet."),
    "too_many_tokens": (
        "问题太长：这个模型一次只读 {0:,} 个词元。",
        "The question is too long: this model reads {0:,} tokens at a time.",
    ),
}


def bilingual_message(key: str, *facts: object) -> str:
    """A message in both languages."""
    return " · ".join(dict.fromkeys(words.format(*facts) for words in SAID[key]))
