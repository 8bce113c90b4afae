"""Shared builders: a tiny base of our own (never the shipped one), tasks, points, and oracles in plain PyTorch."""

import gc
import importlib.util
import os
import socket
import sys

os.environ["OMP_NUM_THREADS"] = os.environ.get("MCANALYSIS_TEST_THREADS", "1")  # also of processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may wait for a network

from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import settings

from mcanalysis.tasks.task import Example, Task, TaskData

# No test may rest on one machine's digits: the suite has to pass under ATEN_CPU_CAPABILITY=default and avx2, with one
# thread and with two (MCANALYSIS_TEST_THREADS), and without oneDNN (MCANALYSIS_TEST_ONEDNN=0).
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if os.environ.get("MCANALYSIS_TEST_ONEDNN") == "0":
    torch.backends.mkldnn.set_flags(False)

# The same examples every time, so that a change is judged by what it does; HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_collection_finish():
    """What the imports have made stays: every training collects garbage, and would look through all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def what_later_imports_have_made_stays():
    """Trainers and architectures are imported by the first test that needs them: that, too, is looked through once."""
    yield
    if len(gc.get_objects()) > 50_000:
        gc.collect()
        gc.freeze()


# Calls of what stands in the table of shapes.py are checked, in all tests; before any of those modules is imported.
_spec = importlib.util.spec_from_file_location("shapes", Path(__file__).with_name("shapes.py"))
shapes = sys.modules["shapes"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shapes)
shapes.watch()


@pytest.fixture(scope="session", autouse=True)
def no_other_machine():
    """No test reaches another machine: what tries is refused here, by name, and not after a wait for its answer."""
    real = socket.socket.connect

    def is_here(host):
        with suppress(ValueError):
            return host == "localhost" or ip_address(host).is_loopback
        return False

    def connect(self, address):
        streams = self.family in (socket.AF_INET, socket.AF_INET6) and self.type & socket.SOCK_STREAM
        if streams and not is_here(address[0]):
            raise OSError(f"a test asked for {address}: no test may need another machine")
        return real(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        yield


WORDS = ("apple", "river", "seven", "green", "Haus", "stone", "quiet", "paper", "north", "silver")


def _sentence(rng: Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


PICTURES_ARE_BESIDE_THE_POINT = {"analyses", "explore", "faults", "strangers", "studies", "test_docs_code.py"}


@pytest.fixture(scope="module", autouse=True)
def draft_pictures(request):
    """Pictures, which have tests where they are drawn, are saved coarser, with outlines of letters, not cut fonts.

    Drawing takes as long as it took, but saving a PDF a fifth of it.
    """
    if PICTURES_ARE_BESIDE_THE_POINT.isdisjoint(request.path.parts):
        yield
        return
    import matplotlib

    from mcanalysis.plotting import style

    def draft(save):
        def saved(figure, scale, resolution):
            with matplotlib.rc_context({"pdf.fonttype": 3}):
                return save(figure, scale, resolution / 2)

        return saved

    with pytest.MonkeyPatch.context() as patch:
        for name in ("pdf", "png"):
            patch.setitem(style._BYTES, name, draft(style._BYTES[name]))
        yield


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A folder that `load_base` can load: byte-level BPE with about 300 words, a Llama of width 32 and two layers.

    Its weights are five times the usual size (the tied embeddings fifteen times), so that logits are far from uniform,
    greedy choices far from ties, and answers can be learned by heart.
    """
    from mcanalysis.pretraining.base_model import new_model, train_tokenizer

    rng = Random(0)
    tokenizer = train_tokenizer([_sentence(rng, 3, 9) for _ in range(50)], vocab_size=300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = new_model(tokenizer, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_length=256)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
        embeddings = model.get_input_embeddings().weight
        embeddings.mul_(3.0)
        embeddings[tokenizer.pad_token_id] = embeddings[7].flip(0)  # PyTorch's zeros would hide padding that is seen
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(base_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="session")
def make_model(base_folder):
    """make_model(seed=0, dtype="auto", **LoraSettings) -> LoraModel over a fresh copy of the tiny base."""
    from mcanalysis.models.adapter_files import LoraSettings
    from mcanalysis.models.loading import load_base
    from mcanalysis.models.lora_model import LoraModel

    def make(seed=0, dtype="auto", **settings):
        base, tokenizer = load_base(str(base_folder), dtype)
        return LoraModel.attach(base, tokenizer, LoraSettings(**{"rank": 4, **settings}), seed, str(base_folder))

    return make


@pytest.fixture(scope="session")
def tiny_base(tokenizer):
    """tiny_base("gpt2") -> a random base of another architecture, in evaluation mode, for the same tokenizer.

    Sliding windows are 8 tokens, fewer than most examples have; Gemma 2's soft caps are low enough to bend its logits.
    """
    import transformers as t

    def make(architecture, seed=0):
        ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        ids["pad_token_id"] = tokenizer.pad_token_id
        shape = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
        }
        grouped = {"intermediate_size": 64, "num_key_value_heads": 1, **shape, **ids}
        window = {"sliding_window": 8}
        caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}
        mixed = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}
        config = {
            "gpt2": lambda: t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **ids),
            "gpt_neox": lambda: t.GPTNeoXConfig(intermediate_size=64, **shape, **ids),
            "opt": lambda: t.OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **shape, **ids),
            "llama": lambda: t.LlamaConfig(**grouped),
            "mistral": lambda: t.MistralConfig(**window, **grouped),
            "phi3": lambda: t.Phi3Config(**window, **grouped),
            "qwen2": lambda: t.Qwen2Config(**grouped),
            "qwen3": lambda: t.Qwen3Config(head_dim=16, **grouped),
            "gemma": lambda: t.GemmaConfig(head_dim=16, **grouped),
            "gemma2": lambda: t.Gemma2Config(head_dim=16, **caps, **window, **grouped),
            "gemma3": lambda: t.Gemma3TextConfig(head_dim=16, **mixed, **window, **grouped),
        }[architecture]()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = t.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(5.0)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_examples():
    """make_examples(number, seed) -> examples whose prompts and answers differ in length."""

    def make(number, seed=0):
        rng = Random(f"examples/{seed}")
        return [Example(f"{_sentence(rng, 1, 8)} {i}:", _sentence(rng, 1, 3)) for i in range(number)]

    return make


@pytest.fixture(scope="session")
def make_tasks(make_examples):
    """make_tasks(names, num_train, num_test) -> list of TaskData with exact match as score."""

    def make(names=("zeta", "alpha"), num_train=12, num_test=3, seed=0, held_out_seed=900):
        return [
            TaskData.of(
                Task(name, "en", "exact_match", 6),
                {
                    "train": make_examples(num_train, f"{seed}/{k}"),
                    "eval": make_examples(num_test, f"{held_out_seed}/{k}"),
                    "test": make_examples(num_test, f"{held_out_seed}/{k}/t"),
                },
            )
            for k, name in enumerate(names)
        ]

    return make


@pytest.fixture(scope="session")
def encode_examples(make_examples, tokenizer):
    """encode_examples(number, seed) -> encoded examples of different lengths."""
    from mcanalysis.models.encoding import encode_all

    return lambda number, seed=0: encode_all(make_examples(number, seed), tokenizer, 128)[0]


@pytest.fixture(scope="session")
def random_point():
    """random_point(model, seed, scale) -> a LoRA point of the model's shapes in which B is not zero."""

    def make(model, seed=0, scale=0.15):
        generator = torch.Generator().manual_seed(seed)
        return {
            name: scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            for name, tensor in model.point().items()
        }

    return make


@pytest.fixture(scope="session")
def add_by_hand():
    """add_by_hand(base, point): W += B·A in every adapted layer of a plain model. The oracle of merging."""

    def add(base, point):
        weights = dict(base.named_parameters())
        with torch.no_grad():
            for name in point:
                if name.endswith(".lora_A.weight"):
                    module = name.removesuffix(".lora_A.weight")
                    update = point[f"{module}.lora_B.weight"] @ point[name]
                    weight = weights[f"{module}.weight"]
                    conv1d = type(base.get_submodule(module)).__name__ == "Conv1D"
                    weight.add_(update.T if conv1d else update)
        return base.eval()

    return add


@pytest.fixture(scope="session")
def plain_model_at(base_folder, add_by_hand):
    """plain_model_at(point) -> a fresh copy of the tiny base, no PEFT about it, with the point added by hand."""
    from transformers import AutoModelForCausalLM

    def make(point=None):
        base = AutoModelForCausalLM.from_pretrained(base_folder)
        return add_by_hand(base, point or {})

    return make


@pytest.fixture(scope="session")
def alone():
    """alone(model, example) -> (nll, hidden states per block) of one unpadded example. The oracle of every loss."""

    def run(model, example):
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        output = model(input_ids=ids, output_hidden_states=True)
        log_p = output.logits[0].double().log_softmax(-1)
        first = len(example.prompt_ids) - 1  # the position that predicts the answer's first token
        nll = -sum(log_p[first + i, token] for i, token in enumerate(example.answer_ids))
        return nll, [h[0] for h in output.hidden_states[1:]]

    return run


@pytest.fixture(scope="session")
def make_step():
    """make_step(model, current, replay) -> the Step of one undivided batch, its totals counted here."""
    from mcanalysis.models.encoding import collate
    from mcanalysis.strategies.strategy import Step, Totals

    def make(model, current, replay=()):
        totals = Totals(
            sum(len(e.answer_ids) for e in current),
            sum(len(e.answer_ids) for e in replay),
            sum(len(e.prompt_ids) + len(e.answer_ids) for e in replay),
        )
        batch = collate([*current, *replay], model.tokenizer.pad_token_id)
        return Step(model.peft, model, batch, len(current), totals)

    return make


@pytest.fixture
def train_task(tmp_path):
    """train_task(model, strategy, examples, name="zeta", seed=0, **TrainingConfig) -> the TaskTrainer, trained."""
    from mcanalysis.training.config import TrainingConfig
    from mcanalysis.training.task_trainer import TaskTrainer

    def run(model, strategy, examples, name="zeta", seed=0, **settings):
        usual = {"num_steps": 3, "batch_size": 4, "learning_rate": 3e-3, "warmup_ratio": 0.0}
        config = TrainingConfig(**{**usual, **settings})
        trainer = TaskTrainer(model, strategy, examples, name, config, str(seed), str(tmp_path / "scratch"))
        trainer.train()
        return trainer

    return run


@pytest.fixture(scope="session")
def mean_apart():
    """mean_apart(one, other) -> the mean over all coordinates of how far apart two trained points are.

    For trainings that ought to end in one point but round otherwise. Adam divides each gradient by its size: where it
    is rounding alone, a coordinate goes anywhere, up to the learning rate a step. The mean sees a wrong gradient still.
    """

    def mean(one, other):
        assert one.keys() == other.keys()
        return float(torch.cat([(one[k].double() - other[k].double()).abs().flatten() for k in one]).mean())

    return mean


@pytest.fixture
def four_times_four(encode_examples, train_task, mean_apart):
    """four_times_four(start): a training in steps of 16 examples ends where one in steps of 4 times 4 does.

    `start()` gives the model and the strategy of each of the two, `end(model, strategy)` the tensors that are compared.
    """

    def check(start, end=lambda model, strategy: model.point(), examples=None, learning_rate=1e-3, rel=1e-5):
        ends, losses = [], []
        for batch_size, accumulation in ((16, 1), (4, 4)):
            model, strategy = start()
            settings = {"batch_size": batch_size, "gradient_accumulation": accumulation, "learning_rate": learning_rate}
            losses.append(train_task(model, strategy, examples or encode_examples(48), **settings).losses)
            ends.append(end(model, strategy))
        assert mean_apart(*ends) < 0.01 * learning_rate
        assert len(losses[0]) == len(losses[1]) == 3  # one number per optimiser step, comparable between the two
        assert losses[0] == pytest.approx(losses[1], rel=rel)

    return check


@pytest.fixture(scope="session")
def check_gradient():
    """check_gradient(model, loss): the gradients that the model's parameters hold are those of `loss()`."""

    def check(model, loss):
        gradient = {k: p.grad.clone() for k, p in model.parameters.items()}
        square = float(sum(g.double().square().sum() for g in gradient.values()))
        size, values = 2e-3 / square**0.5, []
        for sign in (1, -2, 1):  # + size, - size, back
            with torch.no_grad():
                for name, parameter in model.parameters.items():
                    parameter.add_(gradient[name], alpha=sign * size)
            values.append(loss().item())
        assert (values[0] - values[1]) / (2 * size) == pytest.approx(square, rel=0.02)

    return check


@pytest.fixture(scope="session")
def run_config(base_folder):
    """run_config(strategy, **RunConfig) -> a configuration of a few steps on the tiny base."""
    from mcanalysis.training.config import RunConfig, TrainingConfig

    def make(strategy="sequential", num_steps=3, **settings):
        training = TrainingConfig(num_steps=num_steps, batch_size=4, learning_rate=3e-3, max_length=128)
        return RunConfig(strategy=strategy, model=str(base_folder), lora_rank=4, training=training, **settings)

    return make


@pytest.fixture(scope="session")
def adapter_bytes():
    """adapter_bytes(run directory) -> the bytes of every saved minimum by its path."""

    def read(directory):
        files = sorted(directory.glob("minima/*/*/adapter_model.safetensors"))
        return {str(f.relative_to(directory)): f.read_bytes() for f in files}

    return read


@pytest.fixture(scope="session")
def stop_after():
    """stop_after(steps, signal=SIGTERM) -> a progress that sends this process a signal when so many steps are done."""
    import signal

    from mcanalysis.progress import silent

    class StopAfter:
        def __init__(self, steps, number=signal.SIGTERM):
            self.left, self.number = steps, number

        def __call__(self, *, total, desc):
            return self if desc.startswith("train ") else silent(total=total, desc=desc)

        def update(self, n=1):
            self.left -= n
            if self.left == 0:
                os.kill(os.getpid(), self.number)

        def close(self):
            pass

    return StopAfter


@pytest.fixture
def seen():
    """A progress that remembers the bars it was told of: how far each came, and which were closed."""

    class Bars:
        def __init__(self):
            self.bars, self.closed = {}, []

        def __call__(self, *, total, desc):
            of_all = self

            class Bar:
                total = 0

                def update(self, n=1):
                    of_all.bars[desc] = of_all.bars.get(desc, 0) + n

                def close(self):
                    of_all.closed.append(desc)

            return Bar()

    return Bars()


@pytest.fixture(scope="session")
def engine_of():
    """An engine with a token budget, or with that of the longest example where the budget is lower."""
    from mcanalysis.evaluation.batch_plan import longest
    from mcanalysis.evaluation.engine import Engine, EngineSettings

    def make(model, objectives, token_budget):
        return Engine(model, EngineSettings(max(token_budget, longest(objectives))))

    return make


@pytest.fixture
def script(monkeypatch, capsys):
    """script("train", *flags) -> (exit code, stdout, stderr): a script of `analyses/`, run in this process.

    Without `--workers` it starts no others, which would take longer to start than what tests compute.
    """
    folder = Path(__file__).parents[1] / "analyses"
    monkeypatch.setattr("mcanalysis.studies.executors.processes.default_workers", lambda *_: 1)

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.syspath_prepend(str(folder))
        spec = importlib.util.spec_from_file_location(f"script_{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = 0
        try:
            module.run_script(module.main)
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        if not code and not {"--json", "--help", "--help-all"} & set(arguments):
            assert captured.out.splitlines()[-1].startswith("next: "), "every command ends with what to run next"
        return code, captured.out, captured.err

    return call


@pytest.fixture
def install_package(tmp_path, monkeypatch):
    """install_package("name", "mcanalysis.scores", {"mine": "module"}, {"module": source}) -> the folder it is in.

    What the package's classes and our registries' files have added is gone afterwards, too.
    """
    from mcanalysis import benchmarks, strategies, tasks
    from mcanalysis.cli.studies import STUDIES
    from mcanalysis.metrics import scores
    from mcanalysis.paths import base

    registries = (strategies._STRATEGIES, tasks._TASKS, benchmarks._BENCHMARKS, scores._SCORES, base._PATHS, STUDIES)
    for registry in registries:
        registry.names()
        monkeypatch.setattr(registry, "_loaders", dict(registry._loaders))
    modules = []

    def install(package, group, entries, files):
        site = tmp_path / f"site-{package}"
        information = site / f"{package}-1.0.dist-info"
        information.mkdir(parents=True)
        for name, source in files.items():
            (site / f"{name}.py").write_text(source)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (information / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        monkeypatch.syspath_prepend(site)
        modules.extend(files)
        return site

    yield install
    for name in modules:
        sys.modules.pop(name, None)
