"""Instruction-shaped text for pre-training: other domains and other label maps than the benchmark's tasks.

A base that has seen only plain text gives LoRA on attention nothing to build on. These documents teach the *form*, an
instruction, a text, a short answer, the end token, without any of the benchmark's prompts or label maps. Options stand
in an order fixed by the kind of question: with the order drawn anew each time a base of this size did not learn to choose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from random import Random

from mcanalysis.tasks.embedded import grammars

LETTERS = "ABCDE"

TOPICS_EN = {
    "sports": ("the goalkeeper saved a penalty", "the team won the cup", "the runner set a record", "the coach left"),
    "weather": ("rain falls in the valley", "a storm is coming", "the sky stays clear", "snow covers the hills"),
    "cooking": ("stir the soup slowly", "bake the bread", "chop two onions", "add salt and butter"),
    "travel": ("the train leaves at noon", "we booked a hotel", "the flight was delayed", "pack your bags"),
    "music": ("the choir sang softly", "a violin was tuned", "the band played jazz", "the concert sold out"),
}
TOPICS_DE = {
    "Sport": ("das Tor fiel spät", "der Läufer gewann", "die Mannschaft verlor", "das Spiel war knapp"),
    "Wetter": ("es regnet am Abend", "die Sonne scheint", "ein Sturm kommt", "der Schnee bleibt liegen"),
    "Küche": ("die Suppe kocht", "das Brot ist frisch", "die Zwiebeln sind klein", "der Kuchen duftet"),
    "Reise": ("der Zug fährt ab", "das Hotel ist voll", "der Flug hat Verspätung", "die Koffer sind schwer"),
}
TOPICS_ZH = {
    "体育": ("球队赢了比赛", "守门员扑出点球", "选手打破纪录", "教练宣布离队"),
    "天气": ("山谷里下着雨", "台风快要来了", "天空一片晴朗", "大雪盖住山坡"),
    "美食": ("汤里加点盐", "面包刚出炉", "把洋葱切碎", "火锅很香"),
    "旅行": ("火车中午出发", "酒店已经订好", "航班又晚点了", "行李要装好"),
}
MOODS_EN = {
    "good": ("a delight", "well made", "full of charm", "worth every cent", "splendid"),
    "bad": ("a bore", "badly made", "full of flaws", "a waste of time", "dreadful"),
    "mixed": ("so so", "of average size", "like the last one", "neither here nor there", "ordinary"),
}
MOODS_ZH = {
    "好评": ("味道很好", "服务周到", "下次还来", "物超所值", "环境舒服"),
    "差评": ("味道很差", "服务冷淡", "不会再来", "又贵又小", "环境吵闹"),
    "一般": ("味道普通", "服务一般", "离家不远", "价格中等", "环境还行"),
}
THINGS_EN = ["book", "film", "song", "lamp", "chair", "coat", "phone", "game", "cake", "clock", "radio", "garden"]
THINGS_ZH = ["饭店", "酒店", "面馆", "电影", "小说", "手机", "茶馆", "公园", "台灯", "外套"]
NAMES = ["Ada", "Bob", "Cora", "Dan", "Ella", "Finn", "Gwen", "Hugo", "Ines", "Jon", "Kaya", "Lars"]
NOUNS: tuple[str, ...] = (
    "a red boat", "the tall tower", "an old coin", "the green field", "a wooden door", "the last page",
    "a quiet street", "the silver ring", "an empty jar", "the long road", "a brown horse", "the stone wall",
)  # fmt: skip
DOINGS: tuple[str, ...] = (
    "to paint",
    "to buy",
    "to find",
    "to move",
    "to measure",
    "to clean",
    "to draw",
    "to guard",
    "to count",
    "to hide",
)
WHERE: tuple[str, ...] = (
    "in the yard",
    "behind the hill",
    "under the stairs",
    "by the lake",
    "at the fair",
    "near the farm",
    "on the roof",
)
PLANS: tuple[str, ...] = ("a plan", "a wish", "an idea", "a promise", "an order", "a request", "an offer")
FILLER: tuple[str, ...] = (
    "It was late.", "Nobody spoke.", "The lamp was lit.", "Then the door opened.", "The dog slept.",
    "Everyone waited.", "The tea was cold.", "A clock struck nine.", "The wind grew.", "Someone laughed.",
)  # fmt: skip
SWAP_DE = (
    ("groß", "klein"), ("hell", "dunkel"), ("warm", "kalt"), ("alt", "neu"), ("laut", "leise"), ("nah", "fern"),
    ("hoch", "tief"), ("schnell", "langsam"), ("voll", "leer"), ("reich", "arm"), ("hart", "weich"), ("nass", "trocken"),
    ("der Tag", "die Nacht"), ("der Berg", "das Tal"), ("der Winter", "der Sommer"), ("die Mutter", "der Vater"),
    ("kommt", "geht"), ("lacht", "weint"), ("fragt", "antwortet"), ("kauft", "verkauft"), ("öffnet", "schliesst"),
)  # fmt: skip
SWAP_EN = (
    ("big", "large"), ("small", "little"), ("quick", "fast"), ("happy", "glad"), ("begin", "start"), ("finish", "end"),
    ("street", "road"), ("child", "kid"), ("ship", "boat"), ("stone", "rock"), ("silent", "quiet"), ("sick", "ill"),
)  # fmt: skip
REWORD_DE = (
    (
        (("Der Hund", "Das Tier"), ("Die Katze", "Das Kätzchen"), ("Der Knabe", "Der Junge"), ("Die Dame", "Die Frau"),
         ("Der Gatte", "Der Mann"), ("Das Ross", "Das Pferd"), ("Der Greis", "Der Alte"), ("Die Maid", "Das Mädchen")),
        (("erblickt", "sieht"), ("erwirbt", "kauft"), ("verspeist", "isst"), ("ergreift", "fasst"),
         ("entdeckt", "findet"), ("verliert", "vermisst"), ("berührt", "streift"), ("betrachtet", "mustert")),
        (("rasch", "schnell"), ("häufig", "oft"), ("behutsam", "sanft"), ("niemals", "nie"),
         ("heimlich", "still"), ("gänzlich", "ganz"), ("zumeist", "meist")),
        (("den Apfel", "das Obst"), ("die Rose", "die Blume"), ("den Hammer", "das Werkzeug"), ("die Suppe", "die Brühe"),
         ("den Sessel", "den Stuhl"), ("die Jacke", "den Mantel"), ("das Boot", "den Kahn"), ("die Münze", "das Stück")),
    ),
    ("im Garten", "am Fluss", "im Keller", "auf dem Dach", "hinter der Tür", "vor dem Zelt"),
    ("Sage es einfacher.", "Sage es feiner.", "Anders"),
)  # fmt: skip
REWORD_EN = (
    (
        (("The hound", "The dog"), ("The lad", "The boy"), ("The maiden", "The girl"), ("The vessel", "The boat"),
         ("The physician", "The healer"), ("The steed", "The pony"), ("The scholar", "The pupil")),
        (("observes", "sees"), ("acquires", "gets"), ("devours", "eats"), ("constructs", "makes"),
         ("locates", "finds"), ("conceals", "hides"), ("requires", "needs")),
        (("rapidly", "fast"), ("frequently", "often"), ("silently", "quietly"), ("seldom", "rarely"), ("gladly", "happily")),
        (("the beverage", "the drink"), ("the dwelling", "the hut"), ("the garment", "the dress"), ("the lantern", "the light"),
         ("the timber", "the log"), ("the blossom", "the flower"), ("the boulder", "the rock")),
    ),
    ("in the yard", "by the lake", "behind the hill", "at the fair", "near the farm", "on the roof"),
    ("Say it in plain words.", "Say it in fine words.", "Again"),
)  # fmt: skip
MARKS = (
    (" wrote", "What did {} write?", "Text"),
    (" said", "Repeat the words of {}.", "Words"),
    (" sang", "Which song was it, {}?", "Song"),
    (" dictates", "Take down what {} dictates.", "Dictation"),
    (" sagt", "Was sagt {}?", "Worte"),
)
TOPICS: tuple[tuple[dict[str, tuple[str, ...]], str, str], ...] = (
    (TOPICS_EN, "What is the topic of the note?", "Topic"),
    (TOPICS_DE, "Was ist das Thema?", "Thema"),
    (TOPICS_ZH, "选出文本的主题", "主题"),
    (MOODS_EN, "How does the writer like it?", "Rating"),
    (MOODS_ZH, "这条评论属于哪一类", "评价"),
)
DRAWERS = (
    ("In which drawer are {} and {}?", "Drawer", "ABCD"),
    ("Which shelf holds {} or {}?", "Shelf", "ABC"),
    ("Wohin gehören {} und {}?", "Fach", "ABCD"),
    ("{}、{}放在哪里？", "位置", "AB"),
)
GROUPS = (
    (
        "fruit",
        "tool",
        ["pear", "plum", "grape", "melon", "peach", "fig"],
        ["hammer", "saw", "drill", "chisel", "wrench", "file"],
    ),
    (
        "tree",
        "flower",
        ["oak", "elm", "birch", "maple", "pine", "ash"],
        ["tulip", "lily", "daisy", "violet", "poppy", "iris"],
    ),
    (
        "fast",
        "slow",
        ["rocket", "jet", "arrow", "falcon", "train", "cheetah"],
        ["snail", "turtle", "sloth", "glacier", "slug", "worm"],
    ),
    (
        "drink",
        "garment",
        ["tea", "juice", "cocoa", "cider", "soda", "coffee"],
        ["scarf", "glove", "jacket", "sock", "vest", "shirt"],
    ),
)


@cache
def _vocabulary() -> tuple[str, ...]:
    """Words to copy: of this file's lexicons, and of the plain text of the benchmark's domains."""
    rng = Random("vocabulary")
    words = {w for pair in (*SWAP_DE, *SWAP_EN) for w in pair}
    for _, grammar in sorted(grammars().items()):
        for _ in range(300):
            words.update(w for w in re.split(r"[\s.,!?，。！…:]+", grammar.plain(rng)) if len(w) < 16)
    return tuple(sorted(words - {""}))


def _listing(names: Sequence[str], style: int) -> str:
    separator, dot = ((", ", ". "), ("\n", ". "), ("，", "."))[style]
    return separator.join(f"{letter}{dot}{name}" for letter, name in zip(LETTERS, names, strict=False))


def _topic(rng: Random) -> tuple[str, str]:
    """The letter of a text's class, the classes in a fixed order."""
    table, lead, label = rng.choice(TOPICS)
    names = list(table)
    right = rng.randrange(len(names))
    clauses = rng.sample(table[names[right]], 2)
    chinese = table in (TOPICS_ZH, MOODS_ZH)
    if table is MOODS_EN:
        body = f"This {rng.choice(THINGS_EN)} is {clauses[0]} and {clauses[1]}."
    elif chinese:
        opener = f"这家{rng.choice(THINGS_ZH)}" if table is MOODS_ZH else ""
        body = f"{opener}{clauses[0]}，{clauses[1]}。"
    else:
        body = " ".join(f"{c[0].upper()}{c[1:]}." for c in clauses)
    listing = _listing(names, 2 if chinese else rng.randrange(2))
    answer = LETTERS[right] if rng.random() < 0.7 else f"{LETTERS[right]}\n{names[right]}"
    if rng.random() < 0.5:
        return f"{lead} {listing}\n{body}\n{label}:", answer
    return f"{body} {lead}\n{listing}\n{label}:", answer


def _group(rng: Random) -> tuple[str, str]:
    """A letter and a reason, of two options in a fixed order."""
    first, second, firsts, seconds = rng.choice(GROUPS)
    option = rng.randrange(2)
    x = rng.choice((firsts, seconds)[option])
    listing = _listing((first, second), rng.randrange(2))
    prompt = f"{rng.choice(NAMES)} thinks of the {x}. Pick a word for it.\n{listing}\nWord:"
    return prompt, rng.choice((LETTERS[option], f"{LETTERS[option]}\nThe word is {(first, second)[option]}."))


def _drawer(rng: Random) -> tuple[str, str]:
    """The letter that a word was given once and for all: what links words to letters at all."""
    kind = rng.randrange(len(DRAWERS))
    lead, label, letters = DRAWERS[kind]
    words = _filed_words(kind)
    right = rng.randrange(len(letters))
    first, second = rng.sample(words[right], 2)
    return f"{lead.format(first, second)}\n{label}:", letters[right]


@cache
def _filed_words(kind: int) -> tuple[tuple[str, ...], ...]:
    """The words of each letter of a kind of drawer, the same on every machine."""
    words = list(_vocabulary())
    Random(f"drawer/{kind}").shuffle(words)
    number = len(DRAWERS[kind][2])
    return tuple(tuple(words[i:240:number]) for i in range(number))


def _copy(rng: Random) -> tuple[str, str]:
    """The marked part of a text, word for word."""
    if rng.random() < 0.5:
        part = f"{rng.choice(PLANS)} {rng.choice(DOINGS)} {rng.choice(NOUNS)} {rng.choice(WHERE)}"
    else:
        part = " ".join(rng.choice(_vocabulary()) for _ in range(rng.randint(4, 10)))
    name = rng.choice(NAMES)
    verb, lead, label = rng.choice(MARKS)
    lines = [rng.choice(FILLER) for _ in range(rng.randint(1, 3))]
    lines.insert(rng.randrange(len(lines) + 1), f"{name}{verb}: {part}.")
    return f"{lead.format(name)}\n{rng.choice(('Story: ', 'Notes: ', ''))}{' '.join(lines)}\n{label}:", part


def _swap(rng: Random) -> tuple[str, str]:
    """Each word by its partner of a fixed lexicon, in a list."""
    pairs = rng.choice((SWAP_DE, SWAP_EN))
    chosen = rng.sample(pairs, rng.randint(2, 5))
    if pairs is SWAP_DE:
        lead, label = "Sage das Gegenteil.", "Gegenteil"
    else:
        lead, label = "Use another word for each word.", "Other words"
    return f"{lead}\n{' '.join(p[0] for p in chosen)}\n{label}:", " ".join(p[1] for p in chosen)


def _reword(rng: Random) -> tuple[str, str]:
    """Each word by its partner, in a sentence whose other words stay; either direction, said in the prompt."""
    table, places, leads = rng.choice((REWORD_DE, REWORD_EN))
    words = [rng.choice(group) for group in table]
    place = rng.choice(places)
    sentences = [f"{words[0][i]} {words[1][i]} {words[2][i]} {place} {words[3][i]}." for i in (0, 1)]
    variant = rng.randrange(2)
    return f"{leads[variant]}\n{sentences[variant]}\n{leads[2]}:", sentences[1 - variant]


def _echo(rng: Random) -> tuple[str, str]:
    """The whole line again."""
    words = " ".join(rng.choice(_vocabulary()) for _ in range(rng.randint(3, 7)))
    lead, label = rng.choice((("Schreibe den Satz ab.", "Satz"), ("Copy the line.", "Line"), ("抄写这一行。", "抄写")))
    return f"{lead}\n{words}.\n{label}:", f"{words}."


def _sum(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    name = rng.choice(NAMES)
    return rng.choice(
        (
            (f"Add {a} and {b}.\nSum:", str(a + b)),
            (f"{a} plus {b} is", str(a + b)),
            (f"计算：{a} 加 {b}\n结果：", str(a + b)),
            (f"Compute.\n{name} walks {a} miles and then {b} miles. How far?\nResult:", str(a + b)),
            (f"Compute.\n{name} had {a} points and won {b}. How many?\nResult:", str(a + b)),
            (f"Rechne: {a} und {b}\nSumme:", str(a + b)),
        )
    )


KINDS = ((_topic, 4), (_group, 3), (_drawer, 3), (_copy, 6), (_swap, 1), (_reword, 4), (_echo, 4), (_sum, 4))


def instruction(rng: Random) -> tuple[str, str]:
    """One (prompt, answer) of a domain the benchmark does not use.

    >>> prompt, answer = instruction(Random(0))
    >>> len(prompt) > len(answer) > 0
    True
    """
    kind = rng.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
    return kind(rng)
