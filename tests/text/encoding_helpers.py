"""Texts in several scripts, and their decoding, for the tests of encodings and archives."""

from __future__ import annotations

import io
import random

from shuoshu.text.encodings import TextDecoder

SIMPLIFIED = """第一回　渡口夜雨

　　沈砚把油灯拨亮了些，窗外的雨还没有停。柳青禾推门进来，抖了抖蓑衣上的水，说：“船是走不成了，老船夫说，河水涨到了第三级石阶。”
　　沈砚没有答话。他从袖子里取出那封信，又看了一遍，信上只有八个字：“账在茶楼，人在北山。”
　　“你还要去吗？”她问。
　　“去。”他把信凑到灯上，纸边卷起来，慢慢地黑了，“不去，这二十年的债就没有人还了！”
　　两个人都不说话，只听见屋檐下的水一滴一滴落在瓦盆里；远处有人敲了三更。
"""


TRADITIONAL = """第一回　渡口夜雨

　　沈硯把油燈撥亮了些，窗外的雨還沒有停。柳青禾推門進來，抖了抖蓑衣上的水，說：「船是走不成了，老船夫說，河水漲到了第三級石階。」
　　沈硯沒有答話。他從袖子裡取出那封信，又看了一遍，信上只有八個字：「賬在茶樓，人在北山。」
　　「你還要去嗎？」她問。
　　「去。」他把信湊到燈上，紙邊捲起來，慢慢地黑了，「不去，這二十年的債就沒有人還了！」
　　兩個人都不說話，只聽見屋簷下的水一滴一滴落在瓦盆裡；遠處有人敲了三更。
"""


ENGLISH = """CHAPTER I. The Quay

The lamp was still lit when she came down to the quay, and nobody had
said a word about the letter. “You are late,” he told her; the ferry
had gone at six, and the river was already over the third step.
"""


WESTERN = {
    "english": """The lamp was still lit when she came down to the café on the quay. “You’re late,” he
said; “the ferry’s gone – it left at six …” Her fiancé’s letter lay on the table, unopened.
""",
    "french": """« Où êtes-vous allée ? » demanda-t-il. La rivière avait déjà passé la troisième marche, et
l’été n’était pas fini. Personne n’avait parlé de la lettre : ni la mère, ni le garçon du café.
""",
    "german": """„Du kommst zu spät“, sagte er und schloß die Tür. Die Fähre war um sechs gefahren, und das
Wasser stand schon über der dritten Stufe; früher hätte sie darüber gelacht. Ärger gab es genug.
""",
    "spanish": """—¿Dónde estabas? —preguntó él—. ¡La barca salió a las seis! El río había subido hasta el
tercer escalón, y nadie dijo una palabra de la carta de la señora Núñez, ni aquel día ni después.
""",
    "italian": """«Perché sei venuta così tardi?» le chiese. Il traghetto è partito alle sei, e l’acqua era
già più alta del terzo gradino; nessuno però parlò della lettera. La città dormiva.
""",
    "portuguese": """— Não há mais ninguém na estação — disse ele. A água já chegava ao terceiro degrau, e as
orações da avó não serviram de nada. “Amanhã”, pensou ela, “levarei a carta à irmã dele.”
""",
}


def varied(text: str, times: int = 60) -> str:
    """A larger text: the shuffled sentences of a small one, repeated; lines end with CR LF."""
    draw, lines = random.Random(3), text.split("\n")
    return "".join("\r\n".join(draw.sample(lines, len(lines))) + "\r\n" for _ in range(times))


def decoded(raw: bytes, forced: str | None = None) -> tuple[str, TextDecoder]:
    decoder = TextDecoder(io.BytesIO(raw), forced)
    return "".join(decoder.parts()), decoder
