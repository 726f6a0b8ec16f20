"""Secrets are known by their form, what only stands for one is not, and a text is shown without them."""

import random
import string
import time
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from ledger import validation
from ledger.leaks import kinds, leaks, redacted
from ledger.models import Patch, PolicyOverride
from pipeline.events import Actor, Event
from tests import factories as make
from tests.api.asking import Api

# Made here, so that no scanner of repositories takes this file for a leak.
_RANDOM = random.Random(13)


def letters(count: int, of: str = string.ascii_letters + string.digits) -> str:
    return "".join(_RANDOM.choices(of, k=count))


HEX = "0123456789abcdef"
SECRETS = {
    "sbx_" + letters(8, string.ascii_lowercase + string.digits) + "_" + letters(43): "Signalbox Key",
    "whsec_" + letters(44): "Signalbox Key",
    "sk-ant-" + "api03-" + letters(93) + "AA": "Anthropic Key",
    "sk-ant-" + "oat01-" + letters(80): "Anthropic Key",
    "sk-" + "proj-" + letters(74) + "T3BlbkFJ" + letters(74): "OpenAI Key",
    "sk-" + "svcacct-" + letters(60): "OpenAI Key",
    "sk-" + letters(20) + "T3BlbkFJ" + letters(20): "OpenAI Key",
    "sk-or-" + "v1-" + letters(64, HEX): "OpenAI Key",
    "gsk_" + letters(52): "Key of a Model's Host",
    "xai-" + letters(80): "Key of a Model's Host",
    "hf_" + letters(34): "Hugging Face Token",
    "ghp_" + letters(36): "GitHub Token",
    "ghs_" + letters(36): "GitHub Token",
    "github_pat_" + letters(22) + "_" + letters(59): "GitHub Token",
    "glpat-" + letters(20): "GitLab Token",
    "glrt-" + letters(20): "GitLab Token",
    "xoxb-" + "123456789012-123456789013-" + letters(24): "Slack Token",
    "xapp-" + "1-A0123456789-123456789012-" + letters(64, HEX): "Slack Token",
    "AKIA" + letters(16, string.ascii_uppercase): "AWS Access Key",
    "AIza" + letters(35): "Google Key",
    "npm_" + letters(36): "NPM tokens",
    "pypi-" + "AgEIcHlwaS5vcmc" + letters(120): "PyPI Token",
    "dckr_pat_" + letters(27): "Registry Token",
    "hvs." + letters(95): "Cloud Token",
    "dop_v1_" + letters(64, HEX): "Cloud Token",
    "123456789:" + "AA" + letters(33): "Telegram Token",
    "eyJ" + letters(30) + ".eyJ" + letters(40) + "." + letters(43): "JSON Web Token",
    "-----BEGIN " + "PRIVATE KEY-----": "Private Key",
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----": "Private Key",
    "-----BEGIN " + "EC PRIVATE KEY-----": "Private Key",
    "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----": "Private Key",
    "postgres" + "://app:Tr0ub4dor@db.internal/app": "Basic Auth Credentials",
    "mongodb+srv" + "://app:Tr0ub4dor@c.internal": "Basic Auth Credentials",
    "postgres" + "://app:app@db.internal/app": "Basic Auth Credentials",
    "Server=db;Database=x;User Id=sa;" + "Password=Tr0ub4dor;": "Connection String",
    "Pwd=Tr0ub4dor;" + "Server=db": "Connection String",
    "jdbc:postgresql://h/db?user=a&" + "password=Tr0ub4dor": "Connection String",
}


@pytest.mark.parametrize(("secret", "kind"), SECRETS.items(), ids=list(range(len(SECRETS))))
def test_a_secret_is_known_wherever_it_stands_in_a_line_and_is_taken_out_of_it(secret: str, kind: str) -> None:
    for line in (
        secret,
        f"KEY={secret}",
        f'    "key": "{secret}", # that one',
        f"x = {secret} + 1",
        "é" * 3_000 + f" {secret} ",
    ):
        assert kinds(line) == [kind], line
        shown = redacted(f"+{line}\n+after")
        assert secret not in shown
        assert f"[redacted: {kind}]" in shown
        assert shown.endswith("\n+after")


@pytest.mark.parametrize(
    "line",
    [
        *("sk-ant-...", "export ANTHROPIC_API_KEY=<your key>", "ANTHROPIC_API_KEY=sk-ant-<your key>", "sk-proj-…"),
        *(
            "sk-ant-api03-" + "x" * 60,
            "ghp_" + "x" * 36,
            "glpat-" + "x" * 20,
            "sk-ant-your-key-here-and-nothing-else-at-all",
        ),
        *(
            "sbx_<prefix>_<secret>",
            "Authorization: Bearer sbx_…",
            "sbx_your_key",
            "hf_" + "0" * 34,
            "AKIA...",
            "npm_token",
        ),
        *("postgres://user:password@localhost/db", "postgres://user:${PASSWORD}@db/x", "redis://:%s@host:6379/0"),
        *("postgres://app:app@localhost/app", "https://<user>:<token>@github.com/x", "postgres://user:{password}@host"),
        *("Server=db;User Id=sa;Password={password};", "password = os.environ['PASSWORD']; server = db"),
        *(
            "risk-proj-management-of-the-long-project-name-here-and-there",
            "task-ant-colony-optimisation-with-a-long-name-x",
        ),
        *(
            "AIza",
            "def test_the_score_weighs_and_speed_and_lets_the_untried_be_tried() -> None:",
            "-----BEGIN PUBLIC KEY-----",
            "-----BEGIN CERTIFICATE-----",
            "npm_config_cache=/tmp/some/long/path/of/npm",
        ),
        *(
            "hf_hub_download(repo_id, filename, revision=revision)",
            "glpat-tests",
            "if pwd == user.password: return server",
        ),
    ],
)
def test_what_only_stands_for_a_secret_is_none(line: str) -> None:
    assert leaks(line) == []
    assert redacted(line) == line


def test_a_private_key_is_taken_out_to_its_end() -> None:
    body = [letters(64) for _line in range(20)]
    head, foot = "-----BEGIN " + "RSA PRIVATE KEY-----", "-----END " + "RSA PRIVATE KEY-----"
    text = "\n".join(["+a = 1", f"+{head}", *(f"+{line}" for line in body), f"+{foot}", "+b = 2", " c = 3"])
    shown = redacted(text)
    assert not any(line in shown for line in body)
    assert shown.startswith("+a = 1\n+[redacted: Private Key]\n+[redacted]\n")
    assert shown.endswith("\n+b = 2\n c = 3")
    assert shown.count("\n") == text.count("\n")
    whole = '+  "private_key": "' + head + "\\n" + "\\n".join(body) + '"\n+  "b": 2'
    assert redacted(whole) == '+  "private_key": "[redacted: Private Key]\n+  "b": 2'


def test_only_lines_that_one_asks_for_are_changed() -> None:
    secret = "AKIA" + letters(16, string.ascii_uppercase)
    text = f"-{secret}\n+{secret}\n {secret}"
    shown = redacted(text, sees=lambda line: line.startswith("+"))
    assert shown == f"-{secret}\n+[redacted: AWS Access Key]\n {secret}"


# -- who is shown a patch's text -------------------------------------------------------------------------------------


@pytest.fixture
def refused(db: None, nudges: Any) -> Patch:
    """A revision of a patch, both with a secret, of which both were refused."""
    project = make.make_project(key="relay", repository=make.sample_repository())
    patch = None
    for number in (1, 2):
        diff = make.new_file_diff("conf.py", f"KEY = '{SECRET}'  # {number}")
        patch = make.make_patch(project, diff_text=diff, replaces=patch)
        validation.validate(patch.pk)
        patch.refresh_from_db()
        assert patch.last_error_code == "forbid_secrets"
    assert patch is not None
    return patch


SECRET = "sk-ant-" + "api03-" + letters(93) + "AA"


def shown_of(patch: Patch, client: Client) -> dict[str, str]:
    """All that tells of a patch, as people and programs read it."""
    client.force_login(make.make_user(is_staff=True, is_superuser=True))
    api = Api(make.make_key("viewer", project=patch.project).text)
    addresses = {
        "page": reverse("ledger:patch", args=[patch.pk]),
        "diff": reverse("ledger:diff", args=[patch.pk]),
        "interdiff": reverse("ledger:interdiff", args=[patch.pk, patch.replaces_id]),
        "admin": reverse("admin:ledger_patchcontent_change", args=[patch.content.pk]),
    }
    return {
        **{name: client.get(address).content.decode() for name, address in addresses.items()},
        "api": api.get(f"/patches/{patch.pk}/").content.decode(),
        "api diff": api.get(f"/patches/{patch.pk}/diff/").content.decode(),
        "api interdiff": api.get(f"/patches/{patch.pk}/interdiff/").content.decode(),
        "events": "".join(Event.objects.values_list("canonical", flat=True)),
    }


def test_a_refused_secret_is_shown_nowhere_until_somebody_overrides_the_rule(refused: Patch, client: Client) -> None:
    for where, text in shown_of(refused, client).items():
        assert SECRET[:30] not in text, where
    told = shown_of(refused, client)
    assert "redacted" in told["page"]
    assert "What looks like a secret is not shown here" in told["page"]
    for where in ("diff", "admin", "api diff"):
        assert "[redacted: Anthropic Key]" in told[where], where
    assert SECRET in refused.content.diff_text
    api = Api(make.make_key("viewer", project=refused.project).text)
    answer = api.get(f"/patches/{refused.pk}/diff/")
    assert answer["Signalbox-Redacted"] == "true"
    assert "ETag" not in answer

    ada = make.make_user(username="ada")
    for one in (refused, refused.replaces):
        PolicyOverride.objects.grant(
            one, "forbid_secrets", reason="of a test account", by=Actor("user", ada.pk, "ada"), user=ada
        )
        one.note_validation(validation.judge(one), by=make.BY)
    refused.refresh_from_db()
    assert refused.state == "validated"
    told = shown_of(refused, client)
    for where in ("diff", "admin", "api diff"):
        assert SECRET in told[where], where


def test_a_secret_is_not_shown_of_a_patch_that_nobody_has_judged(db: None, nudges: Any, client: Client) -> None:
    project = make.make_project(repository=make.sample_repository())
    patch = make.make_patch(project, diff_text=make.new_file_diff("conf.py", f"KEY = '{SECRET}'"))
    client.force_login(make.make_user(is_superuser=True))
    for _time in ("while it waits", "when it was dropped before anybody judged it"):
        for name in ("patch", "diff"):
            assert SECRET[:30] not in client.get(reverse(f"ledger:{name}", args=[patch.pk])).content.decode()
        patch.refresh_from_db()
        patch.drop("not wanted", by=make.BY)


def test_a_text_that_is_no_diff_is_refused_without_its_secrets(db: None, nudges: Any) -> None:
    project = make.make_project(repository=make.sample_repository())
    api = Api(make.make_key("operator", project=project).text)
    for text in (f"KEY={SECRET}\n", f"diff --git a/{SECRET} b/{SECRET}\nrubbish {SECRET}\n", f"x{'y' * 150}={SECRET}"):
        answer = api.post("/patches/", {"project": project.key, "diff_text": text})
        assert answer.status_code == 422
        assert SECRET[:30] not in answer.content.decode()
    told = Event.objects.filter(kind="patch.refused")
    assert told.count() == 3
    assert not any(SECRET[:30] in one.canonical for one in told)


def test_text_made_to_be_slow_is_read_in_time() -> None:
    made = ["eyJ", "://a:", "Server=", "password=", "sk-ant-", "xoxb-1-", "-----BEGIN ", ";", "a=b;", "jdbc:x?", "=;"]
    for piece in made:
        begun = time.process_time()
        leaks(piece * (100_000 // len(piece)))
        assert time.process_time() - begun < 2, piece


@pytest.mark.parametrize("field", ["summary", "issue_ref", "diff_text"])
def test_a_secret_beside_the_text_is_not_taken_in(db: None, nudges: Any, field: str) -> None:
    project = make.make_project(repository=make.sample_repository())
    api = Api(make.make_key("operator", project=project).text)
    token = "ghp_" + letters(36)
    given: dict[str, Any] = {"project": project.key, "base_commit": make.head_of(project)}
    given |= {"diff_text": make.new_file_diff(), "summary": "A note"}
    given[field] = {
        "summary": f"Uses {token}", "issue_ref": token,
        "diff_text": make.new_file_diff(f"{token}.txt", "a"),
    }[field]  # fmt: skip

    answer = api.post("/patches/", given)

    assert answer.status_code == 422, answer.content
    assert answer.json()["errors"][0]["field"] == field
    assert "GitHub Token" in answer.json()["detail"]
    assert not Patch.objects.exists()
    assert not any(token in one.canonical for one in Event.objects.all())


def test_a_secret_that_a_link_leads_to_is_not_told(db: None, nudges: Any) -> None:
    project = make.make_project(repository=make.sample_repository())
    make.make_policy(project=project, constraints={"forbid_symlinks": False})
    token = "ghp_" + letters(36)
    link = make.new_file_diff("link", token).replace("100644", "120000") + "\\ No newline at end of file\n"
    patch = make.make_patch(project, diff_text=link)

    validation.validate(patch.pk)

    patch.refresh_from_db()
    assert patch.state == "apply_failed"
    assert "leads to [redacted: GitHub Token]" in patch.last_error_message
    assert not any(token in one.canonical for one in Event.objects.all())
