"""The launch recipes against their readers: Ray's own checks, EC2's API model, the CRDs, Ray's command line."""

import copy
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_type_hints

import boto3
import botocore.session
import botocore.validate
import click
import jsonschema
import pytest
import ray
import yaml
from moto import mock_aws
from ray.autoscaler._private.kuberay.autoscaling_config import _get_custom_resources
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.job.job_supervisor import JobSupervisor
from ray.scripts.scripts import cli

from platform.engine.config.compose import load_config
from tests.cluster.kuberay_schema import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster"
LAUNCHER = ("aws.yaml", "gcp.yaml", "on-prem.yaml")
KUBERAY = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
SECRETS = re.compile(
    r"(AKIA|ASIA)[0-9A-Z]{16}|-----BEGIN|gh[pousr]_[A-Za-z0-9]{20}|\b[0-9a-f]{64}\b"
    r"|(?i:aws_secret_access_key|aws_session_token|password|RAY_AUTH_TOKEN)\s*[:=]\s*['\"]?[^\s'\"$]",
)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def launcher(name: str) -> dict[str, Any]:
    (document,) = documents(name)
    return document


def ray_commands(text: str) -> list[list[str]]:
    """The arguments of every `ray ...` call in a shell command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    calls: list[list[str]] = []
    previous, inside = ";", False
    for word in lexer:
        if set(word) <= set(";&|<>"):
            inside = False
        elif not inside and word.rsplit("/", 1)[-1] == "ray" and (set(previous) <= set(";&|") or previous.isdigit()):
            calls.append([])
            inside = True
        elif inside:
            calls[-1].append(word)
        previous = word
    return calls


def parse(call: list[str]) -> click.Context:
    """Parse the options with Ray's own command line; nothing is run. Raises click.UsageError."""
    return cli.commands[call[0]].make_context(call[0], call[1:])


def check_kubernetes(document: dict[str, Any]) -> None:
    jsonschema.validate(document, SCHEMAS[document["kind"]])


def run_instances_error(node_config: dict[str, Any]) -> str:
    """Errors of a node configuration by EC2's API model ("" if none), without SubnetIds, which is Ray's own key."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    parameters = {key: value for key, value in node_config.items() if key != "SubnetIds"}
    parameters |= {"MinCount": 1, "MaxCount": 1}
    return botocore.validate.ParamValidator().validate(parameters, shape).generate_report()


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_launcher_recipe(name):
    recipe = launcher(name)
    prepared = prepare_config(copy.deepcopy(recipe))
    validate_config(prepared)
    workers = {key: value for key, value in prepared["available_node_types"].items() if key != "head"}
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in workers.values())
    # Local paths of the mounts exist (the user creates the token).
    for local in recipe["file_mounts"].values():
        assert local.startswith("~/") or (ROOT / local).exists(), local


@pytest.mark.parametrize(
    ("path", "key"),
    [((), "upscaling_sped"), (("available_node_types", "gpu"), "max_worker"), (("docker",), "imag")],
)
def test_a_misspelled_key_in_a_launcher_recipe_is_refused(path, key):
    recipe = launcher("aws.yaml")
    place = recipe
    for step in path:
        place = place[step]
    place[key] = "1"
    with pytest.raises(jsonschema.ValidationError, match=key):
        validate_config(prepare_config(recipe))


def test_ec2_accepts_the_node_configurations_and_they_are_spot_except_the_head():
    kinds = launcher("aws.yaml")["available_node_types"]
    for kind in kinds.values():
        assert run_instances_error(kind["node_config"]) == ""
    options = {name: kind["node_config"].get("InstanceMarketOptions", {}) for name, kind in kinds.items()}
    markets = {name: option.get("MarketType") for name, option in options.items()}
    assert markets == {"head": None, "gpu": "spot", "decode": "spot"}
    assert "IamInstanceProfil" in run_instances_error(kinds["gpu"]["node_config"] | {"IamInstanceProfil": {}})


def security_group_of_the_stack(region: str) -> str:
    """Make the stack of cluster/aws/account.yaml in the simulated account; the group that it puts out."""
    vpc = boto3.client("ec2", region_name=region).describe_vpcs()["Vpcs"][0]["VpcId"]
    given = {"Bucket": "my-bucket", "Vpc": vpc, "SshFrom": "203.0.113.7/32"}
    stacks = boto3.client("cloudformation", region_name=region)
    stacks.create_stack(
        StackName="reidssl",
        TemplateBody=(FOLDER / "aws" / "account.yaml").read_text(encoding="utf-8"),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
    )
    (output,) = stacks.describe_stacks(StackName="reidssl")["Stacks"][0]["Outputs"]
    return str(output["OutputValue"])


@pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy")  # moto lacks it; cfn-lint reads it below
@mock_aws
def test_the_account_has_roles_and_no_ssh_from_the_world(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    region = launcher("aws.yaml")["provider"]["region"]
    group = security_group_of_the_stack(region)
    (found,) = boto3.client("ec2", region_name=region).describe_security_groups(GroupIds=[group])["SecurityGroups"]
    sources = [source["CidrIp"] for rule in found["IpPermissions"] for source in rule["IpRanges"]]
    inside = [pair["GroupId"] for rule in found["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert sources == ["203.0.113.7/32"] and inside == [group]
    iam = boto3.client("iam")
    wanted = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in launcher("aws.yaml")["available_node_types"].values()}
    roles = {iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"][0]["RoleName"] for name in wanted}
    # moto does not attach the managed policies of a role; CloudFormation does, by this line of each of the two.
    template = (FOLDER / "aws" / "account.yaml").read_text(encoding="utf-8")
    assert len(roles) == template.count("ManagedPolicyArns: [!Ref UseStorage]") == 2
    (policy,) = iam.list_policies(Scope="Local")["Policies"]
    version = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId="v1")["PolicyVersion"]["Document"]
    assert {"s3:ListBucket", "s3:PutObject", "s3:AbortMultipartUpload"} < {
        action for statement in version["Statement"] for action in statement["Action"]
    }
    document = iam.get_role_policy(RoleName="reidssl-ray-head", PolicyName="scale")["PolicyDocument"]
    rights = yaml.safe_load(str(document))["Statement"]  # moto gives a text that is no JSON
    actions = {action for each in rights for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])}
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "iam:PassRole", "ssm:GetParameters"} <= actions and "*" not in actions


def test_the_template_is_one_and_refuses_ssh_from_everywhere():
    """cfn-lint, AWS's own checker, reads it; the pattern of SshFrom refuses the world."""
    from cfnlint import lint_file

    assert [str(match) for match in lint_file(FOLDER / "aws" / "account.yaml")] == []
    text = (FOLDER / "aws" / "account.yaml").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"AllowedPattern: (\S+)", text)
    assert re.fullmatch(pattern, "203.0.113.7/32") and re.fullmatch(pattern, "10.0.0.0/8")
    assert not re.fullmatch(pattern, "0.0.0.0/0") and not re.fullmatch(pattern, "203.0.113.7")


@pytest.mark.parametrize("name", LAUNCHER)
def test_jobs_that_bring_no_code_find_it_on_every_node(name):
    """Ray starts in the folder of the code, which is the working folder of such a job, and with that folder on the path."""
    recipe = launcher(name)
    for role in ("head", "worker"):
        (start,) = [text for text in recipe[f"{role}_start_ray_commands"] if "ray start" in text]
        folder = re.match(r"cd (\S+); ", start)
        assert folder and f"PYTHONPATH={folder[1].replace('~', '$HOME')} " in start
        if name != "on-prem.yaml":
            assert f"WORKDIR {folder[1]}\n" in (FOLDER / "Dockerfile").read_text(encoding="utf-8")
            assert recipe["docker"]["image"] == "REGISTRY/reidssl:0.1"
    if name == "on-prem.yaml":
        assert recipe["file_mounts"][folder[1]] == "."


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_take_the_keys_of_an_object_store_where_there_are_some(name):
    spec = documents(name)[-1]["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "reidssl-storage", "optional": True}}]
        assert container["image"] == "REGISTRY/reidssl:0.1"


@pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy")  # moto lacks it; cfn-lint reads it below
@mock_aws
def test_the_aws_launcher_completes_the_recipe(tmp_path, monkeypatch):
    """Ray's bootstrap on an empty account makes key pair, subnets and security group; resources are those of EC2."""
    from ray.autoscaler._private.aws.config import bootstrap_aws

    monkeypatch.setenv("HOME", str(tmp_path))  # the launcher writes a key to ~/.ssh
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    recipe = launcher("aws.yaml")
    group = security_group_of_the_stack(recipe["provider"]["region"])
    for kind in recipe["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-0123456789abcdef0"]
        kind["node_config"]["SecurityGroupIds"] = [group]
    done = bootstrap_aws(prepare_config(recipe))
    assert oct((next((tmp_path / ".ssh").iterdir())).stat().st_mode & 0o777) == "0o600"
    ec2 = boto3.client("ec2", region_name=done["provider"]["region"])
    for name, kind in done["available_node_types"].items():
        node = kind["node_config"]
        assert node["SubnetIds"] and node["SecurityGroupIds"] == [group] and node["KeyName"], name
        assert run_instances_error(node) == ""
        if name == "head":
            continue
        (facts,) = ec2.describe_instance_types(InstanceTypes=[node["InstanceType"]])["InstanceTypes"]
        gpus = sum(gpu["Count"] for gpu in facts.get("GpuInfo", {}).get("Gpus", []))
        physical = {"CPU": facts["VCpuInfo"]["DefaultVCpus"]} | ({"GPU": gpus} if gpus else {})
        assert kind["resources"] == physical | ({} if gpus else {"decode": 1})
        (start,) = [c for text in done["worker_start_ray_commands"] for c in ray_commands(text) if c[0] == "start"]
        assert parse(start).params["object_store_memory"] <= 0.3 * facts["MemoryInfo"]["SizeInMiB"] * 2**20


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_start_knows_the_options_and_the_dashboard_stays_local(name):
    recipe = launcher(name)
    starts = {}
    for role in ("head", "worker"):
        calls = [call for text in recipe[f"{role}_start_ray_commands"] for call in ray_commands(text)]
        assert [call[0] for call in calls] == ["stop", "start"]
        starts[role] = parse(calls[1]).params
        assert "RAY_AUTH_MODE=token" in recipe[f"{role}_start_ray_commands"][1]
    head, worker = starts["head"], starts["worker"]
    assert head["head"] and head["dashboard_host"] == "127.0.0.1" and head["num_cpus"] == 0
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert any(local == "~/.ray/auth_token" for local in recipe["file_mounts"].values())


def head_environment(name: str) -> dict[str, str]:
    """The environment variables that a recipe sets where the head's Ray starts."""
    if name in LAUNCHER:
        before, start, _ = next(text for text in launcher(name)["head_start_ray_commands"] if "--head" in text).partition(
            "ray start"
        )
        assert start
        exports = re.findall(r"\bexport ([^;]+);", before)
        return dict(word.split("=", 1) for export in exports for word in export.split())
    spec = documents(name)[-1]["spec"]
    head = spec.get("rayClusterSpec", spec)["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {each["name"]: each["value"] for each in head["env"]}


@pytest.mark.parametrize("name", (*LAUNCHER, *KUBERAY))
def test_a_stopped_job_has_time_for_its_checkpoint(name):
    """The head's processes inherit the variable; Ray's job supervisor, which kills the job, runs on the head."""
    wait_s = float(head_environment(name)["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait_s > JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S and 60 <= wait_s <= 300
    assert "RAY_JOB_STOP_WAIT_TIME_S" in inspect.getsource(JobSupervisor)


def test_a_misspelled_option_of_ray_start_is_refused():
    (call,) = ray_commands("ulimit -n 65536; ray start --head --dashbord-host=127.0.0.1")
    with pytest.raises(click.NoSuchOption):
        parse(call)


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_accepts_the_recipe(name):
    found = documents(name)
    for document in found:
        check_kubernetes(document)
    spec = found[-1]["spec"].get("rayClusterSpec", found[-1]["spec"])
    assert spec["authOptions"] == {"mode": "token"} and spec["rayVersion"] == ray.__version__
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    accounts = {document["metadata"]["name"] for document in found if document["kind"] == "ServiceAccount"}
    for group in groups:
        options = " ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items())
        parse(["start", *shlex.split(options)])  # the operator writes them into a shell command
        assert group["template"]["spec"]["serviceAccountName"] in accounts
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        *_, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        (drain,) = ray_commands(script)
        deadline = parse(drain).params["deadline_remaining_seconds"]
        assert f"sleep {deadline}" in script and deadline < pod["terminationGracePeriodSeconds"] < 120
        assert group["minReplicas"] == 0 and pod["nodeSelector"]["eks.amazonaws.com/capacityType"] == "SPOT"


@pytest.mark.parametrize(
    "path",
    [(), ("autoscalerOptions",), ("workerGroupSpecs", 0), ("workerGroupSpecs", 0, "template", "spec")],
)
def test_a_misspelled_field_of_a_kubernetes_recipe_is_refused(path):
    document = documents("kuberay/raycluster.yaml")[-1]
    place = document["spec"]
    for step in path:
        place = place[step]
    place["replicaz"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replicaz"):
        check_kubernetes(document)


def test_the_job_has_the_cluster_of_the_cluster_recipe():
    (cluster_account, cluster), (job_account, job) = documents(KUBERAY[0]), documents(KUBERAY[1])
    assert job_account == cluster_account and job["spec"]["rayClusterSpec"] == cluster["spec"]


def resources_on_offer(name: str) -> list[dict[str, Any]]:
    """Resources of each type of worker node, as Ray's autoscaler and as `ray start` on the node read them."""
    if name in LAUNCHER:
        kinds = prepare_config(launcher(name))["available_node_types"]
        return [kind["resources"] for kind_name, kind in kinds.items() if kind_name != "head"]
    document = documents(name)[-1]
    found = []
    for group in document["spec"].get("rayClusterSpec", document["spec"])["workerGroupSpecs"]:
        parameters = group["rayStartParams"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        custom = _get_custom_resources({}, parameters, group["groupName"])
        (word,) = shlex.split(parameters.get("resources", "{}"))
        assert json.loads(word) == custom, "the autoscaler and the node itself read different resources"
        found.append({"CPU": int(limits["cpu"]), "GPU": limits.get("nvidia.com/gpu", 0)} | custom)
    return found


# on-prem.yaml has one kind of machine and does not know whether it has GPUs.
@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", *KUBERAY])
def test_cpu_nodes_offer_what_the_scaling_configurations_ask_of_decode_nodes(name):
    schema = get_type_hints(importlib.import_module("platform.pretrain").main)["config"]
    choices = [path.stem for path in (ROOT / "configs" / "scaling").glob("*.yaml")]
    wanted = {load_config(schema, "pretrain", [f"scaling={choice}"]).scaling.decode_resource for choice in choices} - {""}
    cpu_nodes = [offer for offer in resources_on_offer(name) if offer.get("CPU") and not offer.get("GPU")]
    assert wanted == {"decode"} and len(cpu_nodes) == 1
    for resource in wanted:
        assert any(offer.get(resource, 0) >= 1 for offer in cpu_nodes), f"scaling.decode_resource={resource} would wait for ever"


def program_calls() -> list[str]:
    """Every `python -m platform.<program> ...` in the job recipe and in cluster/README.md."""
    texts = [documents("kuberay/rayjob.yaml")[-1]["spec"]["entrypoint"]]
    texts.append((FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " "))
    calls = [call for text in texts for call in re.findall(r"python -m platform\.\w+[^\n`]*", text)]
    return sorted({" ".join(call.split()) for call in calls})


@pytest.mark.parametrize("call", program_calls())
def test_the_programs_in_the_recipes_exist_and_accept_their_options(call):
    _, _, module, *overrides = shlex.split(call)
    source = (ROOT / module.replace(".", "/")).with_suffix(".py")
    assert source.is_file(), f"{call}: there is no {source.relative_to(ROOT)}"
    schema = get_type_hints(importlib.import_module(module).main)["config"]
    load_config(schema, module.rpartition(".")[2], overrides)


def test_images_and_lock_agree_with_the_installed_ray():
    tags = {
        tag
        for path in FOLDER.rglob("*")
        if path.is_file()
        for tag in re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)", path.read_text(encoding="utf-8"))
    }
    assert tags == {ray.__version__}
    for lock in (ROOT / "locks").glob("*.lock"):
        assert re.search(rf"(?m)^ray(\[[\w,]+\])?=={re.escape(ray.__version__)}\b", lock.read_text(encoding="utf-8")), lock
    pinned_torch = re.search(r"(?m)^torch==(\S+)", (ROOT / "locks" / "torch.txt").read_text(encoding="utf-8"))
    assert pinned_torch and "+" not in pinned_torch[1], "a +cpu build in the lock would leave the GPUs unused"


def test_the_dockerfile_names_what_it_copies_and_runs_as_a_user():
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if word[:2] != "--"]
    assert sources and all((ROOT / source).exists() for source in sources), sources
    assert "." not in sources
    sent = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert sent == set(sources)
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]


def test_no_credentials_in_any_file():
    for path in FOLDER.rglob("*"):
        if path.is_file() and (found := SECRETS.search(path.read_text(encoding="utf-8"))):
            pytest.fail(f"{path.relative_to(ROOT)} seems to hold a secret near {found.start()}")
    assert SECRETS.search("key: AKIA" + "ABCDEFGH12345678") and SECRETS.search("RAY_AUTH_TOKEN: " + "abc")
