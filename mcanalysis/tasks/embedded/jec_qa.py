"""JEC-QA stand-in: a short Chinese case, four options whose order is fixed by the family of question."""

from __future__ import annotations

from random import Random

NAME = "JEC-QA"
MAX_NEW_TOKENS = 2  # enough to see a letter end

# question, options A to D, acts that point to each option
FAMILIES = (
    ("构成何罪？", ("盗窃罪", "诈骗罪", "抢劫罪", "受贿罪"), (
        ("趁夜偷走手机", "撬锁拿走现金", "扒走乘客钱包", "潜入仓库搬货"),
        ("编造项目骗钱", "冒充官员收费", "用假合同骗货", "谎称中奖要款"),
        ("持刀逼人交钱", "打倒店员抢包", "威胁司机夺车", "捆绑主人劫财"),
        ("收红包批项目", "利用职务收礼", "收钱帮人升职", "借审批要好处"))),
    ("适用哪部法律？", ("合同法", "侵权法", "婚姻法", "继承法"), (
        ("交货迟了十天", "拒付约定价款", "租约提前解除", "订金没有退还"),
        ("狗咬伤了路人", "花盆砸坏汽车", "医院误诊致残", "偷拍隐私照片"),
        ("夫妻争房产", "起诉要求离婚", "争孩子抚养权", "登记结婚被拒"),
        ("父亲留下遗嘱", "兄弟分祖屋", "遗产无人认领", "孙子代位取得"))),
    ("由谁处理？", ("法院", "检察院", "公安局", "仲裁委"), (
        ("递交起诉状", "申请再审", "不服一审判决", "请求强制执行"),
        ("提起公诉", "批准逮捕", "监督审判", "提出抗诉"),
        ("报案称被打", "办理身份证", "行政拘留五日", "现场勘查"),
        ("劳动争议裁决", "约定仲裁条款", "商事仲裁申请", "选定仲裁员"))),
    ("属于哪种处罚？", ("罚款", "拘役", "有期徒刑", "缓刑"), (
        ("交五百元", "缴纳罚金两千", "钱款上缴国库", "按日加收费用"),
        ("关押三个月", "短期关押", "每月回家一天", "就近执行关押"),
        ("入狱五年", "监狱服刑三年", "判七年监禁", "长年在狱劳动"),
        ("暂不收监", "考验期两年", "社区矫正", "不必入狱但受考察"))),
)  # fmt: skip
SURNAMES = ["张", "王", "李", "赵", "陈", "刘", "杨", "黄", "周", "吴"]
PLACES = ("在上海", "在车站", "在村里", "在商场", "在公司", "去年", "上月", "今年春天", "某日", "下班后")


def case(rng: Random, family: tuple, option: int) -> str:
    """A person and two acts of one option."""
    first, second = rng.sample(family[2][option], 2)
    return f"{rng.choice(SURNAMES)}某{rng.choice(PLACES)}{first}，又{second}。"


def generate(rng: Random, index: int) -> tuple[str, str]:
    """One (prompt, answer); the right option is `index` modulo 4.

    >>> generate(Random(0), 2)[1]
    'C'
    """
    family, option = rng.choice(FAMILIES), index % 4
    options = "\n".join(f"{letter}.{name}" for letter, name in zip("ABCD", family[1], strict=True))
    return f"{case(rng, family, option)}{family[0]}\n{options}\n答案：", "ABCD"[option]


def plain(rng: Random) -> str:
    """Facts of this domain as plain sentences, for pre-training."""
    family, option = rng.choice(FAMILIES), rng.randrange(4)
    if rng.random() < 0.5:
        return case(rng, family, option)
    return f"{case(rng, family, option)}与{family[1][option]}有关。"
