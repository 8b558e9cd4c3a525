"""The documentation holds: its Python blocks run, and the flags, files and links that it names exist."""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "metadata" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAMS = ("main.py", "inference.py", "evaluation.py")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


def named(pairs: list[tuple[Path, str]]) -> list:
    """Parameters for pytest with the page's name and the block's number as id."""
    count: dict[Path, int] = {}
    params = []
    for page, code in pairs:
        count[page] = count.get(page, 0) + 1
        params.append(pytest.param(code, id=f"{page.relative_to(ROOT)}-{count[page]}"))
    return params


PYTHON_BLOCKS = [(page, code) for page in PAGES for code in blocks(page, "python")]


def command_lines() -> list[tuple[Path, str]]:
    """Command lines of this project in bash blocks, without comments, continued lines joined."""
    lines = []
    for page in PAGES:
        for code in blocks(page, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                if re.match(r"(python |\.ci/run|scripts/)", line):
                    lines.append((page, " ".join(shlex.split(line.replace("$photo", "photo.png"), comments=True))))
    return lines


@cache
def help_of(program: str, *subcommand: str) -> str:
    """What `python program [subcommand] --help` prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *subcommand, "--help"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def flags_of(program: str, *subcommand: str) -> set[str]:
    """The flags that a command knows."""
    return set(re.findall(r"(?<![\w-])--\w+", help_of(program, *subcommand)))


def is_known(flag: str, known: set[str]) -> bool:
    """Whether argparse accepts the flag: by its name, or as the beginning of exactly one."""
    return flag in known or len([name for name in known if name.startswith(flag)]) == 1


# ------------------------------------------------------------------- Python blocks


def test_the_readme_shows_the_library():
    assert len(blocks(ROOT / "README.md", "python")) >= 4


@pytest.mark.parametrize("code", named(PYTHON_BLOCKS))
def test_a_python_block_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------- commands


def unknown_flags(program, arguments, *subcommand):
    """The flags among a command's arguments that the program does not have."""
    known = flags_of(program, *subcommand)
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    return [flag for flag in flags if not is_known(flag, known)]


def test_commands_name_existing_files_and_flags():
    problems = []
    for page, line in command_lines():
        program, *arguments = line.removeprefix("python ").split()
        if not (ROOT / program).is_file():
            problems.append(f"{page.name}: no file {program}")
            continue
        if program == "scripts/quickstart.sh":
            program = "main.py"
        if not program.endswith(".py"):  # test.sh hands its flags to pytest, prepare_data.sh has none
            continue
        if "--" in arguments:  # what follows goes to main.py
            place = arguments.index("--")
            problems += [
                f"{page.name}: main.py has no {flag}" for flag in unknown_flags("main.py", arguments[place + 1 :])
            ]
            arguments = arguments[:place]
        subcommand = arguments[:1] if program == "scripts/prepare_metadata.py" else []
        problems += [f"{page.name}: {program} has no {flag}" for flag in unknown_flags(program, arguments, *subcommand)]
    assert problems == []


def test_the_published_command_is_read_as_it_is():
    """The README's command gets as far as the files that it names, so all its flags and values are accepted."""
    published = next(line for _, line in command_lines() if "--dataset_name ILSVRC" in line)
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *published.split()[2:], "--dry_run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "CHECKPOINT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_is_documented(program):
    text = "".join(page.read_text() for page in PAGES)
    documented = set(re.findall(r"(?<![\w-])--\w+", text)) | {"--help"}
    assert sorted(flags_of(program) - documented) == []


# ------------------------------------------------------------------- files and links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_links_to_what_exists(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_files_that_exist(page):
    names = re.findall(r"`((?:wsol|scripts|tests|docs|metadata)/[\w./-]*)`", page.read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_names_its_language(page):
    fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(fences[::2])
    assert not any(fences[1::2])
    assert "<<<<<<<" not in page.read_text()
