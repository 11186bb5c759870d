"""The command line: text settings take any text; every impossible override gives one line of advice."""

import pytest

from platform.engine.config.compose import load_config
from platform.engine.errors import ConfigError
from platform.engine.schemas import schema_of

ODD = [
    "epoch=99.ckpt",
    "a=b=c",
    "a b",
    "a,b",
    "a[0]",
    "[a]",
    "[a,b]",
    "{a}",
    "a#b",
    "a%20b",
    "a@b",
    "it's",
    'say "so"',
    "a:b",
    "ä/日本",
    "-x",
    "+x",
    "~x",
    "007",
    "1e3",
    "true",
    "a\\b",
    "(x)",
    "a;b&c|d",
    "$x",
    "!x",
    "*?",
    "x'",
    "'a' and 'b'",
    "a\tb",
    "a\nb",
]


def compose(program: str, *overrides: str):
    return load_config(schema_of(program), program, overrides)


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_taken_as_it_stands(text):
    config = compose("finetune", f"checkpoint=/runs/{text}", f"target_set=/{text}/x", f"output=/{text}", f"tracking.wandb={text}")
    assert (config.checkpoint, config.target_set, config.output) == (f"/runs/{text}", f"/{text}/x", f"/{text}")
    assert config.tracking.wandb == text
    assert compose("score", f"source_proxy=/{text}").source_proxy == f"/{text}"


def test_one_pair_of_quotes_is_left_out_and_other_keys_are_filled_in():
    assert compose("select", "data='/a b'").data == "/a b" and compose("select", 'data="/it\'s"').data == "/it's"
    assert compose("select", r"data='/it\'s'").data == "/it's"
    assert compose("select", "output=/m/x", "data=${output}/a=b").data == "/m/x/a=b"
    assert compose("select", "data=/first", "data=/last").data == "/last"
    assert compose("finetune", "++checkpoint=/m/a=b").checkpoint == "/m/a=b"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("[/a,/b]", ["/a", "/b"]),
        ("/a", ["/a"]),
        ("[/a]", ["/a"]),
        ("[]", []),
        ("[ /a , /b ]", ["/a", "/b"]),
        ("[/runs/epoch=99.ckpt,/b c]", ["/runs/epoch=99.ckpt", "/b c"]),
        ("['/a,b',\"/c]\"]", ["/a,b", "/c]"]),
        ("'/a,b'", ["/a,b"]),
        ("/epoch=9.ckpt", ["/epoch=9.ckpt"]),
        ("[/it's]", ["/it's"]),
        ("[/a[0],/b]", ["/a[0]", "/b"]),
    ],
)
def test_lists_of_paths(given, meant):
    assert compose("evaluate", f"checkpoints={given}").checkpoints == meant
    assert compose("tune", f"space.checkpoint={given}").space == {"checkpoint": meant}


def test_lists_of_names():
    assert compose("pipeline", "settings=[usl,uda]").settings == ["usl", "uda"]
    assert compose("pipeline", "settings=usl").settings == ["usl"] and compose("export", "formats=onnx").formats == ["onnx"]
    with pytest.raises(ConfigError, match=r"checkpoints=a,b: write checkpoints=\[a,b\] for several values"):
        compose("evaluate", "checkpoints=a,b")


def test_spaces_of_a_sweep_need_no_plus():
    one = compose("tune", "space.unsupervised.cluster.eps=[0.4,0.5]", "+space.checkpoint=[/a,/b=c]").space
    assert one == {"unsupervised": {"cluster": {"eps": [0.4, 0.5]}}, "checkpoint": ["/a", "/b=c"]}
    assert compose("tune", "+space.unsupervised.cluster={eps:[0.4]}").space == {"unsupervised": {"cluster": {"eps": [0.4]}}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.micro_batch=[x]", r"stream\.micro_batch: .*(list|ListConfig)"),
        ("stream.micro_batch=[x", r"stream\.micro_batch: '\[x' is not a value"),
        ("stream.micro_batch=a=b", r"stream\.micro_batch: 'a=b' is not a value"),
        ("stream.micro_batch=1,2", r"stream\.micro_batch=1,2 is several values, a run has one.*platform\.tune"),
        ("length.epochs=range(1,3)", r"length\.epochs=range\(1,3\) is several values"),
        ("model=vit_tiny,vit_small", r"model=vit_tiny,vit_small: there is no .*choices: vit_base"),
        ("model=a=b", r"model=a=b: there is no .*choices: vit_base"),
        ("-m", r"there is no option '-m'; options are --help and --show-config.*platform\.tune"),
        ("--multirun", r"there is no option '--multirun'.*platform\.tune"),
        ("--cfg", r"there is no option '--cfg'; options are --help and --show-config"),
        ("--output=x", r"there is no option '--output=x'.*settings are key=value"),
        ("job", r"'job' is not key=value; .*e\.g\. output=job"),
        ("output", r"'output' is not key=value; write output=value"),
        ("model", r"'model' is not key=value; write model=value"),
        ("", r"'' is not key=value"),
        ("=x", r"there is no key ''"),
        ("+output=x", r"'\+output=x': output exists already: write output=x"),
        ("+stream.micro_batch=1", r"stream\.micro_batch exists already: write stream\.micro_batch=1"),
        ("~output", r"'~output' would remove output.*write output=value"),
        ("~model=x", r"'~model=x' would remove model"),
        ("model@x=vit_tiny", r"a group is chosen as model=choice, without '@'"),
        ("outptu=runs/epoch=99.ckpt", r"there is no key 'outptu'; did you mean output"),
        ("hydra.run.dir=x", r"there is no key 'hydra'"),
        ("output=null", r"output cannot be null: write output= for none"),
        ("stream.micro_batch=", r"stream\.micro_batch: "),
        (
            "optimizer=adamw",
            r"'optimizer=adamw': optimizer has settings of its own, e\.g\. optimizer\.name=\.\.\.: name, learning_rate",
        ),
        ("data.uri=${", r"data\.uri|\$\{"),
    ],
)
def test_what_cannot_be_names_the_key_and_the_remedy_in_one_line(override, message):
    with pytest.raises(ConfigError, match=rf"^configuration: .*{message}") as refused:
        compose("pretrain", override)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_group_that_the_program_does_not_have():
    with pytest.raises(ConfigError, match=r"'model=vit_tiny': this program has no group model; its groups are storage"):
        compose("score", "model=vit_tiny")


def test_a_group_below_a_key_is_chosen_by_that_key():
    config = compose("pipeline", "pretrain.model=vit_tiny", "finetune.scaling=gpus8")
    assert config.pretrain.model.width == 192 and config.finetune.scaling.workers == 8
    with pytest.raises(ConfigError, match=r"pretrain\.model=vit_tyni: there is no .*choices: vit_base"):
        compose("pipeline", "pretrain.model=vit_tyni")
