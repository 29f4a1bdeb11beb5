"""The words and sentences of the synthetic world: what may stand where, with which weight, and its Chinese.

A document tells of one person on one topic: it opens (stage 0), goes on (1), judges a thing (2) and closes
(3). What a slot may hold depends on the document's hidden choices: its topic, its hero, the thing, and the
author's opinion. Everything is plain data; ``world.py`` draws from it, ``world_floor.py`` computes with it.
"""

from dataclasses import dataclass

# Category -> its words as (English, Chinese, weight). A key "category:value" depends on a hidden choice.
Words = dict[str, tuple[tuple[str, str, int], ...]]

TOPICS = ("sea", "city", "farm", "mountain", "school", "kitchen", "hospital", "theater", "railway", "garden")
HEROES = (
    *(
        ("anna", "安娜"),
        ("maria", "玛丽亚"),
        ("lucy", "露西"),
        ("emma", "艾玛"),
        ("ines", "伊内丝"),
        ("clara", "克拉拉"),
    ),
    *(
        ("paul", "保罗"),
        ("david", "大卫"),
        ("felix", "菲利克斯"),
        ("oscar", "奥斯卡"),
        ("tom", "汤姆"),
        ("hugo", "雨果"),
    ),
)
WOMEN = 6  # the first so many heroes are "she"
FRIENDS = (
    *(("alice", "爱丽丝"), ("bella", "贝拉"), ("carmen", "卡门"), ("diana", "黛安娜"), ("elena", "埃琳娜")),
    *(("frank", "弗兰克"), ("george", "乔治"), ("henry", "亨利"), ("ivan", "伊万"), ("jacob", "雅各布")),
    *(("karim", "卡里姆"), ("leon", "里昂"), ("mona", "莫娜"), ("nora", "诺拉"), ("omar", "奥马尔")),
    *(("peter", "彼得"), ("rosa", "罗莎"), ("simon", "西蒙"), ("tessa", "泰莎"), ("vera", "薇拉")),
)
THINGS = {
    "sea": (("boat", "船"), ("net", "渔网"), ("anchor", "锚"), ("compass", "罗盘")),
    "city": (("ticket", "门票"), ("map", "地图"), ("camera", "相机"), ("newspaper", "报纸")),
    "farm": (("plow", "犁"), ("horse", "马"), ("saddle", "马鞍"), ("lantern", "灯笼")),
    "mountain": (("rope", "绳子"), ("tent", "帐篷"), ("axe", "斧头"), ("blanket", "毯子")),
    "school": (("book", "书"), ("pencil", "铅笔"), ("globe", "地球仪"), ("notebook", "笔记本")),
    "kitchen": (("pan", "平底锅"), ("kettle", "水壶"), ("spoon", "勺子"), ("oven", "烤箱")),
    "hospital": (("syringe", "注射器"), ("bandage", "绷带"), ("thermometer", "体温计"), ("wheelchair", "轮椅")),
    "theater": (("costume", "戏服"), ("wig", "假发"), ("violin", "小提琴"), ("curtain", "幕布")),
    "railway": (("suitcase", "手提箱"), ("whistle", "哨子"), ("timetable", "时刻表"), ("uniform", "制服")),
    "garden": (("spade", "铁锹"), ("rose", "玫瑰"), ("bench", "长凳"), ("fountain", "喷泉")),
}
PLACES = {
    "sea": (("harbor", "港口"), ("beach", "海滩"), ("island", "岛"), ("lighthouse", "灯塔")),
    "city": (("museum", "博物馆"), ("square", "广场"), ("bridge", "桥"), ("market", "市场")),
    "farm": (("barn", "谷仓"), ("field", "田野"), ("stable", "马厩"), ("mill", "磨坊")),
    "mountain": (("hut", "小屋"), ("valley", "山谷"), ("summit", "山顶"), ("glacier", "冰川")),
    "school": (("classroom", "教室"), ("library", "图书馆"), ("gym", "体育馆"), ("laboratory", "实验室")),
    "kitchen": (("pantry", "食品间"), ("bakery", "面包房"), ("restaurant", "餐馆"), ("cellar", "地窖")),
    "hospital": (("ward", "病房"), ("clinic", "诊所"), ("pharmacy", "药房"), ("surgery", "手术室")),
    "theater": (("stage", "舞台"), ("balcony", "包厢"), ("foyer", "门厅"), ("studio", "排练室")),
    "railway": (("station", "车站"), ("platform", "站台"), ("tunnel", "隧道"), ("depot", "机务段")),
    "garden": (("orchard", "果园"), ("greenhouse", "温室"), ("lawn", "草坪"), ("pond", "池塘")),
}
FIRMS = {
    "sea": (("marinex", "海联公司"), ("tidal", "潮汐公司")),
    "city": (("metrolab", "都会公司"), ("urbanis", "城通公司")),
    "farm": (("agrarion", "农兴公司"), ("verdea", "绿野公司")),
    "mountain": (("alpina", "高山公司"), ("ridgeway", "岭路公司")),
    "school": (("akademos", "学苑公司"), ("lectoria", "文讲公司")),
    "kitchen": (("gustoria", "美味公司"), ("cucinella", "厨艺公司")),
    "hospital": (("medicara", "康护公司"), ("salvanto", "济世公司")),
    "theater": (("dramatis", "剧场公司"), ("scenario", "幕景公司")),
    "railway": (("ferrovia", "铁道公司"), ("locomar", "机车公司")),
    "garden": (("floralis", "花卉公司"), ("hortensa", "园艺公司")),
}
GOOD = (
    *(("wonderful", "精彩", 2), ("marvelous", "精彩", 2), ("useful", "有用", 2), ("beautiful", "美丽", 2)),
    *(("reliable", "可靠", 2), ("perfect", "完美", 2), ("excellent", "优秀", 1), ("charming", "迷人", 1)),
    *(("elegant", "优雅", 1), ("clever", "巧妙", 1), ("sturdy", "结实", 1), ("splendid", "极好", 1)),
)
BAD = (
    *(("terrible", "糟糕", 2), ("awful", "糟糕", 2), ("useless", "无用", 2), ("ugly", "难看", 2)),
    *(("broken", "坏", 2), ("faulty", "有毛病", 2), ("horrible", "可怕", 1), ("boring", "无聊", 1)),
    *(("clumsy", "笨重", 1), ("stupid", "愚蠢", 1), ("flimsy", "单薄", 1), ("dreadful", "极差", 1)),
)
LIKED = (
    ("liked", "喜欢", 2),
    ("loved", "爱", 2),
    ("praised", "称赞", 1),
    ("admired", "欣赏", 1),
    ("enjoyed", "享受", 1),
)
DISLIKED = (
    ("hated", "讨厌", 2),
    ("disliked", "嫌弃", 2),
    ("returned", "退回", 1),
    ("cursed", "咒骂", 1),
    ("blamed", "责怪", 1),
)
# Free words: nothing in a document tells which of them stands in a slot.
WENT = (("went", "去"), ("walked", "走"), ("drove", "开车"), ("hurried", "赶"), ("cycled", "骑车"), ("ran", "跑"))
WHEN = (
    *(("yesterday", "昨天"), ("today", "今天"), ("early", "一早"), ("again", "又")),
    *(("soon", "不久"), ("late", "很晚"), ("often", "常常"), ("once", "有一次")),
)
COLORS = (
    *(("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("yellow", "黄色")),
    *(("black", "黑色"), ("white", "白色"), ("brown", "棕色"), ("gray", "灰色")),
)
WEATHER = (
    ("sunny", "晴朗"),
    ("rainy", "下雨"),
    ("windy", "刮风"),
    ("cold", "寒冷"),
    ("warm", "温暖"),
    ("foggy", "有雾"),
)
NUMBERS = (
    *(("two", "两"), ("three", "三"), ("four", "四"), ("five", "五"), ("six", "六")),
    *(("seven", "七"), ("eight", "八"), ("nine", "九"), ("ten", "十"), ("twelve", "十二")),
)

# Words that mean the same and stand with equal weight wherever either may stand.
SYNONYMS = (("wonderful", "marvelous"), ("terrible", "awful"), ("big", "large"), ("quickly", "fast"))
OPINIONS = ("negative", "positive")
NOISE = 6  # of 100 opinions, so many use a word of the other side


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
        "went": _even(WENT),
        "when": _even(WHEN),
        "how": (("quickly", "很快", 1), ("fast", "很快", 1), ("slowly", "慢慢", 2), ("carefully", "仔细", 2)),
        "size": (("big", "大", 1), ("large", "大", 1), ("small", "小", 2), ("tiny", "很小", 1), ("heavy", "沉重", 1)),
        "color": _even(COLORS),
        "weather": _even(WEATHER),
        "number": _even(NUMBERS),
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
    "NOUN": "morning coins evening home goodbye",
    "PRON": "who what",
    "ADV": "last later not where",
    "CCONJ": "and",
    "PUNCT": ". , ?",
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
        5,
        "{pronoun} bought a {color} {thing} from {friend} .",
        "{pronoun} 从 {friend} 那里 买 了 {color} 的 {thing} 。",
        (("who sold the {thing} ?", "friend"), ("what color was the {thing} ?", "color")),
    ),
    Template(
        1,
        3,
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
    Template(1, 2, "{pronoun} cleaned the {thing} {how} .", "{pronoun} {how} 擦 干净 {thing} 。"),
    # Opinion words stand side by side: what tells a model that never sees an opinion's label which of them agree.
    Template(
        2,
        3,
        "the {thing} was {quality} , {quality} and {quality} .",
        "{thing} 又 {quality} 又 {quality} 又 {quality} 。",
    ),
    Template(2, 3, "{pronoun} {felt} the {quality} {thing} .", "{pronoun} {felt} {quality} 的 {thing} 。"),
    Template(2, 2, "{friend} called the {thing} {quality} .", "{friend} 说 {thing} {quality} 。"),
    Template(2, 3, "the {thing} was {quality} , not {opposite} .", "{thing} {quality} , 不 {opposite} 。"),
    Template(
        3, 3, "in the evening {pronoun} {went} home with the {thing} .", "晚上 {pronoun} 带 着 {thing} {went} 回家 。"
    ),
    Template(
        3,
        2,
        "at last {pronoun} said goodbye to {friend} at the {place} .",
        "最后 {pronoun} 在 {place} 向 {friend} 告别 。",
    ),
    Template(3, 2, "later {pronoun} told {friend} about the {thing} .", "后来 {pronoun} 给 {friend} 讲 了 {thing} 。"),
)

# From stage to stage: weights of (1, 2, 3, end) after each.
NEXT_STAGE = {0: (1, 0, 0, 0), 1: (2, 3, 0, 0), 2: (0, 1, 1, 0), 3: (0, 0, 0, 1)}
