# Sourced by other scripts: changes to the project's folder and defines install(), which installs packages into .venv.
# PYTHON=/path/to/python3.12 chooses the interpreter that .venv is made with.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $PYTHON is not Python 3.11 or newer; install one and name it: PYTHON=python3.12 $0" >&2
    exit 2
fi

# install FILE...: install the packages of requirements files into .venv, making it first if needed.
install() {
    if [ ! -x .venv/bin/python ]; then
        echo "making the virtual environment .venv ..."
        "$PYTHON" -m venv .venv || {
            echo "error: $PYTHON cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
            exit 2
        }
    fi
    local files=()
    for file in "$@"; do files+=(-r "$file"); done
    echo "installing $* (takes minutes the first time: PyTorch is large) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${files[@]}"
}
