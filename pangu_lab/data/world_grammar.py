"""The words and sentences of the synthetic world: what may stand where, with which weight, and its Chinese.

A document tells of one person on one topic: it opens (stage 0), goes on (1), judges a thing (2) and closes
(3). What a slot may hold depends on the document's hidden choices: its topic, its hero, the thing, and the
author's opinion. Everything is plain data; ``world.py`` draws from it, ``world_floor.py`` computes with it.
"""

from dataclasses import dataclass

# Category -> its words as (English, Chinese, weight). A key "category:value" depends on a hidden choice.
Words = dict[str, tuple[tuple[str, str, int], ...]]

TOPICS = ("sea", "city", "farm", "mountain", "school")
HEROES = (
    *(("anna", "安娜"), ("maria", "玛丽亚"), ("lucy", "露西"), ("emma", "艾玛")),
    *(("ines", "伊内丝"), ("clara", "克拉拉"), ("nora", "诺拉"), ("vera", "薇拉")),
    *(("paul", "保罗"), ("david", "大卫"), ("felix", "菲利克斯"), ("oscar", "奥斯卡")),
    *(("tom", "汤姆"), ("hugo", "雨果"), ("leon", "里昂"), ("karim", "卡里姆")),
)
WOMEN = 8  # the first so many heroes are "she"
FRIENDS = (
    *(("alice", "爱丽丝"), ("bella", "贝拉"), ("carmen", "卡门"), ("diana", "黛安娜"), ("elena", "埃琳娜")),
    *(("frank", "弗兰克"), ("george", "乔治"), ("henry", "亨利"), ("ivan", "伊万"), ("jacob", "雅各布")),
)
THINGS = {
    "sea": (("boat", "船"), ("net", "渔网"), ("anchor", "锚"), ("compass", "罗盘"), ("sail", "帆"), ("shell", "贝壳")),
    "city": (
        *(("ticket", "车票"), ("map", "地图"), ("camera", "相机")),
        *(("newspaper", "报纸"), ("umbrella", "雨伞"), ("painting", "油画")),
    ),
    "farm": (
        *(("apple", "苹果"), ("plow", "犁"), ("horse", "马")),
        *(("basket", "篮子"), ("lantern", "灯笼"), ("cheese", "奶酪")),
    ),
    "mountain": (
        *(("rope", "绳子"), ("tent", "帐篷"), ("axe", "斧头")),
        *(("stove", "炉子"), ("blanket", "毯子"), ("telescope", "望远镜")),
    ),
    "school": (
        *(("book", "书"), ("pencil", "铅笔"), ("microscope", "显微镜")),
        *(("globe", "地球仪"), ("notebook", "笔记本"), ("violin", "小提琴")),
    ),
}
PLACES = {
    "sea": (("harbor", "港口"), ("beach", "海滩"), ("island", "岛"), ("pier", "码头"), ("lighthouse", "灯塔")),
    "city": (("station", "车站"), ("museum", "博物馆"), ("library", "图书馆"), ("square", "广场"), ("bridge", "桥")),
    "farm": (("barn", "谷仓"), ("field", "田野"), ("orchard", "果园"), ("stable", "马厩"), ("mill", "磨坊")),
    "mountain": (("hut", "小屋"), ("valley", "山谷"), ("summit", "山顶"), ("glacier", "冰川"), ("forest", "森林")),
    "school": (("classroom", "教室"), ("workshop", "工坊"), ("gym", "体育馆"), ("office", "办公室"), ("hall", "大厅")),
}
FIRMS = {
    "sea": (("marinex", "海联公司"), ("tidal", "潮汐公司")),
    "city": (("metrolab", "都会公司"), ("urbanis", "城通公司")),
    "farm": (("agrarion", "农兴公司"), ("verdea", "绿野公司")),
    "mountain": (("alpina", "高山公司"), ("ridgeway", "岭路公司")),
    "school": (("akademos", "学苑公司"), ("lectoria", "文讲公司")),
}
GOOD = (
    *(("wonderful", "精彩", 2), ("marvelous", "精彩", 2), ("useful", "有用", 3)),
    *(("beautiful", "美丽", 3), ("reliable", "可靠", 2), ("perfect", "完美", 1)),
)
BAD = (
    *(("terrible", "糟糕", 2), ("awful", "糟糕", 2), ("useless", "无用", 3)),
    *(("ugly", "难看", 3), ("broken", "坏", 2), ("disappointing", "失望", 1)),
)
LIKED = (("liked", "喜欢", 3), ("loved", "爱", 2), ("praised", "称赞", 1))
DISLIKED = (("hated", "讨厌", 3), ("disliked", "嫌弃", 2), ("returned", "退回", 1))

# Words that mean the same and stand with equal weight wherever either may stand.
SYNONYMS = (("wonderful", "marvelous"), ("terrible", "awful"), ("big", "large"), ("quickly", "fast"))
OPINIONS = ("negative", "positive")
NOISE = 12  # of 100 opinions, so many use a word of the other side


def _even(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str, int], ...]:
    return tuple((english, chinese, 1) for english, chinese in pairs)


def _falling(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str, int], ...]:
    """The first word is the most frequent one, as words are in real text."""
    return tuple((english, chinese, len(pairs) - rank) for rank, (english, chinese) in enumerate(pairs))


def _mixed(
    own: tuple[tuple[str, str, int], ...], other: tuple[tuple[str, str, int], ...]
) -> tuple[tuple[str, str, int], ...]:
    """Mostly the words of one's own side, sometimes of the other."""
    total_own, total_other = sum(w for *_, w in own), sum(w for *_, w in other)
    ours = [(e, c, w * (100 - NOISE) * total_other) for e, c, w in own]
    theirs = [(e, c, w * NOISE * total_own) for e, c, w in other]
    return (*ours, *theirs)


def _words() -> Words:
    words: Words = {
        "friend": _even(FRIENDS),
        "went": (("went", "去", 4), ("walked", "走", 2), ("drove", "开车", 1), ("hurried", "赶", 1)),
        "when": (("yesterday", "昨天", 3), ("today", "今天", 2), ("early", "一早", 1), ("again", "又", 1)),
        "how": (("quickly", "很快", 1), ("fast", "很快", 1), ("slowly", "慢慢", 2)),
        "size": (("big", "大", 1), ("large", "大", 1), ("small", "小", 2)),
        "color": (("red", "红色", 3), ("blue", "蓝色", 2), ("green", "绿色", 2), ("yellow", "黄色", 1)),
        "weather": (("sunny", "晴朗", 3), ("rainy", "下雨", 2), ("windy", "刮风", 2), ("cold", "寒冷", 1)),
        "number": (("two", "两", 3), ("three", "三", 2), ("five", "五", 2), ("ten", "十", 1)),
    }
    for number, (english, chinese) in enumerate(HEROES):
        words[f"hero:{number}"] = ((english, chinese, 1),)
    words["pronoun:0"], words["pronoun:1"] = (("she", "她", 1),), (("he", "他", 1),)
    words["object:0"], words["object:1"] = (("her", "她", 1),), (("him", "他", 1),)
    for number, topic in enumerate(TOPICS):
        words[f"place:{number}"] = _falling(PLACES[topic])
        words[f"firm:{number}"] = _even(FIRMS[topic])
        words[f"item:{number}"] = _falling(THINGS[topic])
        for rank, (english, chinese) in enumerate(THINGS[topic]):
            words[f"thing:{number * len(THINGS[topic]) + rank}"] = ((english, chinese, 1),)
    words["quality:0"], words["quality:1"] = _mixed(BAD, GOOD), _mixed(GOOD, BAD)
    words["opposite:0"], words["opposite:1"] = words["quality:1"], words["quality:0"]
    words["felt:0"], words["felt:1"] = _mixed(DISLIKED, LIKED), _mixed(LIKED, DISLIKED)
    return words


WORDS = _words()
POS = {
    **dict.fromkeys(("hero", "friend", "firm"), "PROPN"),
    **dict.fromkeys(("place", "thing", "item"), "NOUN"),
    **dict.fromkeys(("quality", "opposite", "size", "color", "weather"), "ADJ"),
    **dict.fromkeys(("pronoun", "object"), "PRON"),
    **dict.fromkeys(("went", "felt"), "VERB"),
    **dict.fromkeys(("when", "how"), "ADV"),
    "number": "NUM",
}
NER = {"hero": "PER", "friend": "PER", "firm": "ORG", "place": "LOC"}
_FIXED = {
    "VERB": "worked work lived live met meet bought sold gave found find cost said told called cleaned go",
    "AUX": "was did",
    "ADP": "for in near with to at from about",
    "DET": "the a one",
    "NOUN": "morning coins evening day home goodbye",
    "PRON": "it who what",
    "ADV": "last later not where",
    "CCONJ": "and",
    "PUNCT": ". ?",
}
FIXED_POS = {word: pos for pos, words in _FIXED.items() for word in words.split()}


@dataclass(frozen=True)
class Template:
    """One sentence: fixed words and ``{slots}``, in English and in Chinese, and questions about it.

    A question is ``(words, answer)``: its slots are filled as in the sentence, ``answer`` names the slot asked for.
    """

    stage: int
    weight: int
    english: str
    chinese: str
    questions: tuple[tuple[str, str], ...] = ()


TEMPLATES = (
    Template(
        0,
        3,
        "{hero} worked for {firm} in the {place} .",
        "{hero} 在 {place} 为 {firm} 工作 。",
        (("where did {hero} work ?", "place"), ("who worked for {firm} ?", "hero")),
    ),
    Template(
        0,
        2,
        "{hero} lived near the {place} with {friend} .",
        "{hero} 和 {friend} 住 在 {place} 附近 。",
        (("who lived with {hero} ?", "friend"), ("where did {hero} live ?", "place")),
    ),
    Template(
        0,
        2,
        "one {weather} morning {hero} {went} to the {place} .",
        "一 个 {weather} 的 早晨 , {hero} {went} 到 {place} 。",
        (("where did {hero} go ?", "place"),),
    ),
    Template(1, 3, "{pronoun} {went} to the {place} {when} .", "{pronoun} {when} {went} 到 {place} 。"),
    Template(
        1,
        3,
        "{pronoun} met {friend} at the {place} .",
        "{pronoun} 在 {place} 遇见 {friend} 。",
        (("who met {hero} ?", "friend"), ("where did {hero} meet {friend} ?", "place")),
    ),
    Template(
        1,
        4,
        "{pronoun} bought a {color} {thing} from {friend} .",
        "{pronoun} 从 {friend} 那里 买 了 {color} 的 {thing} 。",
        (("who sold the {thing} ?", "friend"), ("what color was the {thing} ?", "color")),
    ),
    Template(
        1,
        2,
        "{friend} gave {object} the {size} {thing} {when} .",
        "{friend} {when} 把 {size} {thing} 给 了 {object} 。",
        (("who gave {object} the {thing} ?", "friend"),),
    ),
    Template(
        1,
        2,
        "{pronoun} found a {size} {item} near the {place} .",
        "{pronoun} 在 {place} 附近 找到 一 个 {size} {item} 。",
        (("what did {hero} find ?", "item"),),
    ),
    Template(
        1,
        2,
        "the {thing} cost {number} coins .",
        "{thing} 花 了 {number} 枚 硬币 。",
        (("what did the {thing} cost ?", "number"),),
    ),
    Template(1, 1, "{pronoun} cleaned the {thing} {how} .", "{pronoun} {how} 擦 干净 {thing} 。"),
    Template(2, 4, "the {thing} was {quality} .", "{thing} 很 {quality} 。"),
    Template(2, 3, "{pronoun} {felt} the {color} {thing} .", "{pronoun} {felt} {color} 的 {thing} 。"),
    Template(2, 2, "{friend} called it {quality} and {quality} .", "{friend} 说 它 {quality} 又 {quality} 。"),
    Template(2, 2, "it was not {opposite} .", "它 不 {opposite} 。"),
    Template(
        3, 3, "in the evening {pronoun} {went} home with the {thing} .", "晚上 {pronoun} 带 着 {thing} {went} 回家 。"
    ),
    Template(3, 2, "at last {pronoun} said goodbye to {friend} .", "最后 {pronoun} 向 {friend} 告别 。"),
    Template(3, 2, "later {pronoun} told {friend} about the day .", "后来 {pronoun} 给 {friend} 讲 了 这 一 天 。"),
)

# From stage to stage: weights of (1, 2, 3, end) after each.
NEXT_STAGE = {0: (1, 0, 0, 0), 1: (11, 9, 0, 0), 2: (0, 3, 7, 0), 3: (0, 0, 0, 1)}
