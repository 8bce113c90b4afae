"""C-STANCE stand-in: the stance of a short Chinese post towards a target, by the majority of its cue clauses."""

from __future__ import annotations

from random import Random

NAME = "C-STANCE"
MAX_NEW_TOKENS = 2  # enough to see a letter end

TARGETS = [
    "圣诞节",
    "女足",
    "网课",
    "电动车",
    "短视频",
    "加班",
    "垃圾分类",
    "无人机",
    "外卖",
    "奥运会",
    "共享单车",
    "地铁广告",
    "高铁",
    "直播带货",
    "国产电影",
    "人工智能",
    "远程办公",
    "夜市",
    "马拉松",
    "双减政策",
    "素食",
    "养猫",
    "露营",
    "公务员考试",
    "博物馆",
    "老年大学",
    "延迟退休",
    "彩礼",
    "广场舞",
    "电子书",
    "盲盒",
    "校服",
    "剧本杀",
    "民宿",
    "新能源",
]
SPEAKERS = ["我", "邻居", "同事", "表妹", "老师", "室友", "店主", "父亲", "网友", "司机"]
OPENERS: tuple[str, ...] = (
    "昨天和{who}聊到{t}",
    "最近大家都在谈{t}",
    "看完关于{t}的报道",
    "{who}又提起了{t}",
    "今天早上刷到{t}的新闻",
    "{who}写了一篇{t}的文章",
    "关于{t}我想说两句",
    "周末{who}参加了{t}的讨论",
)
PRO: tuple[str, ...] = (
    "真心点赞", "应该大力推广", "给生活带来方便", "让人特别感动", "希望越办越好", "我举双手赞成",
    "绝对值得鼓励", "越看越喜欢", "这才是进步", "为它骄傲", "好处说不完", "大家都受益",
    "必须支持到底", "带来满满正能量", "实在太棒了",
)  # fmt: skip
CON: tuple[str, ...] = (
    "简直荒唐", "应该尽早取消", "给大家添了麻烦", "让人十分恶心", "希望别再继续", "我坚决抵制",
    "完全不可接受", "越看越生气", "这就是倒退", "为它羞愧", "坏处说不完", "百姓都遭殃",
    "必须反抗到底", "带来一堆垃圾", "实在太差了",
)  # fmt: skip
FLAT: tuple[str, ...] = (
    "数据还在统计", "各地做法不同", "下周公布安排", "报道有三千字", "会议持续到傍晚", "我只是路过看看",
    "名单共有两页", "具体时间待定", "历史可以查到", "记者拍了照片", "今天是第二场", "文件放在桌上",
    "地点改在城东", "主办方换了人", "内容分成四节",
)  # fmt: skip
ENDINGS: tuple[str, ...] = ("。", "！", "……")


def _clauses(rng: Random, label: int) -> list[str]:
    own = (PRO, CON, FLAT)[label]
    if label == 2 and rng.random() < 0.2:  # praise and blame that cancel are neutral too
        pair = [rng.choice(PRO), rng.choice(CON)]
    elif label < 2 and rng.random() < 0.4:
        pair = [rng.choice(own), rng.choice(FLAT)]
    else:
        pair = rng.sample(own, 2)
    rng.shuffle(pair)
    return pair


def text(rng: Random, label: int) -> tuple[str, str]:
    """A post and its target.

    >>> text(Random(0), 0)[1] in TARGETS
    True
    """
    target = rng.choice(TARGETS)
    opener = rng.choice(OPENERS).format(who=rng.choice(SPEAKERS), t=target)
    return "，".join([opener, *_clauses(rng, label)]) + rng.choice(ENDINGS), target


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer); the label is `index` modulo 3, so that shares are uniform.

    >>> generate(Random(0), 1)[1]
    'B'
    """
    label = index % 3
    post, target = text(rng, label)
    return f"判断文本对对象的态度：A.支持，B.反对，C.中立。\n文本：{post}\n对象：{target}\n态度：", "ABC"[label]


def plain(rng: Random) -> str:
    """Unlabelled text of this domain, for pre-training."""
    return text(rng, rng.randrange(3))[0]
