# A virtual environment with pip, and a wheel that is made, installed, run and removed without any network.
# packages: python3 python3-venv
export PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 TMPDIR=$PWD/tmp
unset PYTHONDONTWRITEBYTECODE
mkdir tmp
python3 -m venv env
python3 - <<'END'
import base64, hashlib, zipfile

files = {
    "greeting/__init__.py": "def main():\n    print('hello from', __file__)\n",
    "greeting/table.py": "TABLE = " + repr(list(range(5000))) + "\n",
    "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
    "greeting-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "greeting-1.0.dist-info/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
}
record = "greeting-1.0.dist-info/RECORD"
lines = []
for name, text in files.items():
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    lines.append(f"{name},sha256={digest},{len(text)}")
files[record] = "\n".join(lines + [record + ",,"]) + "\n"
with zipfile.ZipFile("greeting-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    for name, text in files.items():
        wheel.writestr(name, text)
END
env/bin/pip install -q ./greeting-1.0-py3-none-any.whl
env/bin/greet | grep "$PWD/env/" >/dev/null
env/bin/python -c 'from greeting.table import TABLE; assert sum(TABLE) == 12497500'
env/bin/pip list | grep '^greeting' >/dev/null
env/bin/pip check
env/bin/pip uninstall -q -y greeting
test ! -e env/bin/greet
test -z "$(find env -path '*greeting*')"
