"""Networks of the user's own: found as by ``python -m``, kept as they come, and every failure one clear line."""

from __future__ import annotations

import re
import sys
import textwrap

import pytest
import torch
from torch import nn

from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model

GOOD = """
import torch
from torch import nn

calls = []

def build(image_shape, num_classes):
    calls.append((image_shape, num_classes))
    channels, height, width = image_shape
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
    nn.init.constant_(model[1].weight, 0.25)
    nn.init.constant_(model[1].bias, 0.5)
    return model
"""


@pytest.fixture(autouse=True)
def _modules_as_before(monkeypatch):
    """A module imported by one test is not found by the next."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module of a package in the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(code: str, file: str = "nets/mine.py") -> None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(textwrap.dedent(code))

    return write


def _error(name: str) -> str:
    with pytest.raises(UserError) as caught:
        build_model(name, (1, 4, 4), 3)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"model {name!r}: ")
    return text.removeprefix(f"model {name!r}: ")


@pytest.mark.parametrize(("file", "name"), [("nets/mine.py", "nets.mine:build"), ("mine.py", "mine:build")])
def test_a_network_of_the_current_directory_is_built_for_the_images_and_keeps_its_weights(write, file, name):
    write(GOOD, file)
    model = build_model(name, (1, 4, 4), 3)
    assert (model[1].weight == 0.25).all()
    assert (model[1].bias == 0.5).all()
    assert model.training
    assert sys.modules[name.split(":")[0]].calls == [((1, 4, 4), 3)]


def test_any_callable_will_do(write):
    write(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, s, n): super().__init__(s[2], n)\n"
        "    def forward(self, x): return super().forward(x[:, 0, 0])\n"
    )
    assert type(build_model("nets.mine:Net", (1, 4, 4), 3)).__name__ == "Net"


def test_the_path_of_imports_is_as_before(write):
    write(GOOD)
    before = list(sys.path)
    build_model("nets.mine:build", (1, 4, 4), 3)
    _error("nets.nothing:build")
    assert sys.path == before


def test_looking_at_the_outputs_draws_no_random_numbers_and_changes_no_state(write):
    write(
        """
        import torch
        from torch import nn

        class Noise(nn.Module):
            def forward(self, x):
                return x + torch.rand_like(x)

        def build(image_shape, num_classes):
            norms = [nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval()]
            return nn.Sequential(*norms, Noise(), nn.Flatten(), nn.Linear(16, num_classes))
        """
    )
    torch.manual_seed(1)
    model = build_model("nets.mine:build", (1, 4, 4), 3)
    after = torch.rand(1)
    torch.manual_seed(1)
    nn.Linear(16, 3)
    assert torch.equal(torch.rand(1), after)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert model[0].num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lazy_layers_are_initialized(write):
    write("from torch import nn\ndef build(s, n): return nn.Sequential(nn.Flatten(), nn.LazyLinear(n))\n")
    assert build_model("nets.mine:build", (1, 4, 4), 3)[1].weight.shape == (3, 16)


@pytest.mark.parametrize(
    "name", ["nets.mine:", ":build", "nets.mine:build:it", "nets/mine.py:build", "nets..mine:build"]
)
def test_a_name_of_another_form_is_an_error(name):
    assert re.search(r"package\.module:factory, such as nets\.mine:build for build\(\) in nets/mine\.py", _error(name))


@pytest.mark.parametrize(
    ("name", "missing"),
    [("nets.yours:build", "nets.yours"), ("net.mine:build", "net"), ("nets.mine.more:f", "nets.mine.more")],
)
def test_a_missing_module_is_an_error_that_says_where_it_was_looked_for(write, tmp_path, name, missing):
    write(GOOD)
    text = _error(name)
    assert text.startswith(f"there is no module {missing!r} in {tmp_path} or among the installed packages;")
    assert "start where the package lies, or install it" in text


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("def build(:", "SyntaxError: "),
        ("raise ValueError('a\\nb')", "ValueError: a b;"),
        ("import sys; sys.exit(3)", "SystemExit: 3;"),
        ("assert False", "AssertionError;"),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error_that_says_why(write, code, reason):
    write(code)
    text = _error("nets.mine:build")
    assert text.startswith(f"importing nets.mine raised {reason}")
    assert "python -c 'import nets.mine' works here" in text


def test_a_missing_factory_is_an_error_that_suggests_the_nearest(write):
    write(GOOD)
    assert _error("nets.mine:xbuild") == "module 'nets.mine' has no 'xbuild'; did you mean 'build'?"
    assert re.match("module 'nets.mine' has no 'xyz'; a network of your own is named", _error("nets.mine:xyz"))


@pytest.mark.parametrize(("value", "kind"), [("3", "an object of type int"), ("None", "None")])
def test_a_factory_that_cannot_be_called_is_an_error(write, value, kind):
    write(f"build = {value}")
    assert re.match(rf"'build' is {kind} and cannot be called; name a function", _error("nets.mine:build"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def build(): ...", "TypeError: build() takes 0 positional arguments but 2 were given"),
        ("def build(s, n): raise RuntimeError('no\\n  way')", "RuntimeError: no way"),
        ("def build(s, n): raise SystemExit", "SystemExit"),
        ("def build(s, n): raise RuntimeError('long ' * 1000)", "RuntimeError: long long"),
    ],
)
def test_a_factory_that_raises_is_an_error_that_says_why(write, code, reason):
    write(code)
    text = _error("nets.mine:build")
    assert text.startswith(f"build((1, 4, 4), 3) raised {reason}")
    assert text.endswith("; a factory takes (image_shape, num_classes) and returns a torch.nn.Module")
    assert len(text) < 600


@pytest.mark.parametrize(("value", "kind"), [("3", "an object of type int"), ("None", "None")])
def test_a_factory_that_returns_something_else_is_an_error(write, value, kind):
    write(f"def build(s, n): return {value}")
    assert _error("nets.mine:build").startswith(f"build((1, 4, 4), 3) returned {kind}; a factory returns a torch.nn.")


def test_a_network_that_fails_on_the_images_is_an_error_that_says_why(write):
    write("from torch import nn\ndef build(s, n): return nn.Sequential(nn.Flatten(), nn.Linear(5, n))\n")
    text = _error("nets.mine:build")
    assert re.match(r"the network fails on images of shape \(2, 1, 4, 4\): RuntimeError: mat1 and mat2", text)
    assert text.endswith("; build it for the image_shape that the factory is given")


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ("nn.Flatten(), nn.Linear(16, n + 1)", r"shape \(2, 4\)"),
        ("nn.Linear(4, n)", r"shape \(2, 1, 4, 3\)"),
        ("nn.Flatten(), nn.RNN(16, n)", "an object of type tuple"),
    ],
)
def test_outputs_of_another_shape_are_an_error_that_names_both(write, layers, found):
    write(f"from torch import nn\ndef build(s, n): return nn.Sequential({layers})\n")
    message = rf"the network turns images of shape \(2, 1, 4, 4\) into {found} instead of shape \(2, 3\); return one"
    assert re.match(message, _error("nets.mine:build"))
