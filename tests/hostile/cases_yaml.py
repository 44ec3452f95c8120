"""Hostile YAML: what parsers disagree on, what explodes, what cannot be seen."""

from .conftest import Case, Plain

SOURCE = "source: {repo: org/good}\n"
_LAUGHS = "".join(
    f"{letter}: &{letter} [{', '.join(['*' + before] * 9)}]\n"
    for before, letter in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES = [
    # Duplicate keys, at every level: elsewhere the last one wins silently.
    Case("a key twice at the top", "source: {repo: a/b}\ntask: embed\nsource: {repo: c/d}\n", "3:1", "on line 1"),
    Case("a key twice in a section", "source:\n  repo: a/b\n  repo: c/d\n", "3:3", "'repo' is given twice"),
    Case("a key twice in a flow mapping", "source: {repo: a/b, repo: c/d}\n", "1:21", "'repo' is given twice"),
    Case("a key twice, once in quotes", f'{SOURCE}"source": {{repo: c/d}}\n', "2:1", "'source' is given twice"),
    Case("a key twice, once as an escape", f'{SOURCE}"s\\u006furce": {{repo: c/d}}\n', "2:1", "given twice"),
    Case("a key twice in a list", f"{SOURCE}adapters: [{{name: x, name: y}}]\n", "2:22", "'name' is given twice"),
    Case(
        "a key twice deep in arguments",
        f"{SOURCE}engine:\n  args:\n    hf_overrides:\n      a: {{b: {{c: 1, c: 2}}}}\n",
        "5:21",
        "'c' is given twice",
    ),
    Case("a merge key that overrides", f"{SOURCE}engine:\n  <<: {{dtype: float16}}\n", "3:3", "merge keys"),
    # The Norway family: YAML 1.1's other booleans, numbers and dates. Here they are text, so no boolean and no
    # number; the hint says what was meant.
    Case("no as a boolean", "source: {repo: a/b, track: no}\n", "1:28", "write false"),
    Case("off as a boolean", "source: {repo: a/b, track: off}\n", "1:28", "write false"),
    Case("yes as a boolean", "source: {repo: a/b, track: yes}\n", "1:28", "write true"),
    Case("ON as a boolean", "source: {repo: a/b, track: ON}\n", "1:28", "write true"),
    Case("y as a boolean", "source: {repo: a/b, track: y}\n", "1:28", "write true"),
    Case("N as a boolean", "source: {repo: a/b, track: N}\n", "1:28", "write false"),
    Case("an underscored number", f"{SOURCE}engine: {{max_model_len: 8_192}}\n", "2:25", "'8_192'"),
    Case("a sexagesimal number", f"{SOURCE}engine: {{max_model_len: 1:30}}\n", "2:25", "'1:30'"),
    Case("a binary number", f"{SOURCE}engine: {{max_model_len: 0b1010}}\n", "2:25", "'0b1010'"),
    Case("an octal number too large", f"{SOURCE}lifecycle: {{priority: 0o777}}\n", "2:23", "0o777"),
    Case("a hexadecimal number too large", f"{SOURCE}lifecycle: {{priority: 0xFF}}\n", "2:23", "0xFF"),
    Case("infinity", f"{SOURCE}engine: {{gpu_memory_utilization: .inf}}\n", "2:34", "not a finite number"),
    Case("no number", f"{SOURCE}engine: {{gpu_memory_utilization: .NaN}}\n", "2:34", "not a finite number"),
    Case("a number of 1e999", f"{SOURCE}engine: {{gpu_memory_utilization: 1e999}}\n", "2:34", "too large"),
    Case("a date as a number", f"{SOURCE}lifecycle: {{priority: 2026-01-02}}\n", "2:23", "'2026-01-02'"),
    Case("null as a section", "source: null\n", "1:9", "source is empty"),
    Case("a tilde as a name", f"name: ~\n{SOURCE}", "1:7", "name is empty"),
    Case("a number as a name", f"name: 007\n{SOURCE}", "1:7", 'put it in quotes: "007"'),
    Case("no as a key", f"{SOURCE}no: 1\n", "2:1", "unknown key 'no'"),
    Case("true as a key", f"{SOURCE}true: 1\n", "2:1", "the key true is not text"),
    Case("a number as a key", f"{SOURCE}labels: {{1: a}}\n", "2:10", "the key 1 is not text"),
    # Anchors, aliases, tags, directives, several documents.
    Case("a billion laughs", f"a: &a [x]\n{_LAUGHS}", "1:4", "the anchor &a is not allowed"),
    Case("an alias that contains itself", "a: &a [*a]\n", "1:4", "the alias *a is not allowed"),
    Case("an alias as a key", f"{SOURCE}*x : 1\n", "2:1", "the alias *x is not allowed"),
    Case("an anchor on a name", f"name: &n sick\n{SOURCE}", "1:7", "the anchor &n is not allowed"),
    Case("a Python object", "source: !!python/object/apply:os.system [id]\n", "1:9", "python/object/apply:o"),
    Case("a Python name", f"{SOURCE}description: !!python/name:os.system ''\n", "2:14", "python/name:os.system"),
    Case("binary text", f"{SOURCE}description: !!binary aGVsbG8=\n", "2:14", "tag:yaml.org,2002:binary"),
    Case("a set", f"{SOURCE}labels: !!set {{a, b}}\n", "2:9", "tag:yaml.org,2002:set"),
    Case("a tag that makes text of a number", f"{SOURCE}lifecycle: {{priority: !!int '5'}}\n", "2:23", "the tag"),
    Case("a tag of one's own", f"{SOURCE}description: !vault |\n  61\n", "2:14", "the tag !vault"),
    Case("the rules of YAML 1.1", f"%YAML 1.1\n---\n{SOURCE}", "1:1", "directives"),
    Case("a tag of another name", f"%TAG !! tag:evil,2026:\n---\n{SOURCE}", "1:1", "directives"),
    Case("two documents", f"{SOURCE}---\n{SOURCE}", "2:1", "more than one document"),
    Case("a document after an end", f"{SOURCE}...\n---\nsource: {{repo: c/d}}\n", "3:1", "more than one document"),
    Case("a list of models", "- source: {repo: a/b}\n", "1:1", "the top level is a list"),
    Case("text instead of a mapping", "rm -rf /\n", "1:1", "the top level is a single value"),
    Case("nothing", "", "1:1", "the file is empty"),
    Case("JSON with a comment", '{"source": {"repo": "a/b"} // x\n}', "1:28", "',' or '}' is missing"),
    # Bounds.
    Case(
        "5,000 lists in each other", f"{SOURCE}description: {'[' * 5000}{']' * 5000}\n", "2:45", "deeper than 32"
    ),
    Case("5,000 mappings in each other", f"{SOURCE}description: {'{a: ' * 5000}{'}' * 5000}\n", "2:138", "deeper"),
    Case(
        "600 levels of indentation",
        "".join(f"{' ' * depth}a:\n" for depth in range(600)),
        "33:33",
        "deeper than 32",
    ),
    Case("5,000 dashes", f"description:\n{'- ' * 5000}x\n", "2:63", "deeper than 32"),
    Case(
        "an integer of 5,000 digits",
        f"{SOURCE}lifecycle: {{priority: {'9' * 5000}}}\n",
        "2:23",
        "more than 18 digits",
    ),
    Case(
        "a float of 5,000 digits",
        f"{SOURCE}engine: {{gpu_memory_utilization: {'9' * 5000}.5}}\n",
        "2:34",
        "too large",
    ),
    Case("11,000 values", f"{SOURCE}aliases: [{'x,' * 11_000}]\n", "2:19997", "more than 10000 values"),
    Case("a key of 200,000 characters", f"{SOURCE}{'k' * 200_000}: 1\n", "2:1", ""),
    Case("half a megabyte", f"{SOURCE}description: {'x' * 2**19}\n", "1:1", "larger than 256 KiB"),
    # What cannot be seen, and encodings.
    Case("a NUL", f"{SOURCE}description: a\0b\n", "2:15", "U+0000"),
    Case("a NUL as an escape", f'{SOURCE}description: "a\\0b"\n', "2:14", "U+0000"),
    Case("an escape sequence of a terminal", f"{SOURCE}description: \x1b]0;owned\x07\n", "2:14", "U+001B"),
    Case("a backspace", f"{SOURCE}description: safe\b\b\b\bevil\n", "2:18", "U+0008"),
    Case("UTF-16, little end first", b"\xff\xfe" + SOURCE.encode("utf-16-le"), "1:1", "UTF-16"),
    Case("UTF-16, big end first", b"\xfe\xff" + SOURCE.encode("utf-16-be"), "1:1", "UTF-16"),
    Case("UTF-16 without a mark", SOURCE.encode("utf-16-le"), "1:2", "U+0000"),
    Case("UTF-32", b"\xff\xfe\0\0" + SOURCE.encode("utf-32-le"), "1:1", "UTF-16 or UTF-32"),
    Case("Latin-1", f"{SOURCE}description: f\xfcr alle\n".encode("latin-1"), "2:15", "0xfc is not UTF-8"),
    Case("an overlong slash", SOURCE.encode().replace(b"/", b"\xc0\xaf"), "1:19", "0xc0 is not UTF-8"),
    Case("half a surrogate pair", f"{SOURCE}description: \ud800\n", "2:14", "not UTF-8"),
    Case("a surrogate as an escape", f'{SOURCE}description: "\\ud800"\n', "2:17", "escape is not allowed"),
    Case("an escape beyond Unicode", f'{SOURCE}description: "\\UFFFFFFFF"\n', "2:17", "escape is not allowed"),
    Case("a second byte order mark", f"\ufeff\ufeff{SOURCE}", "1:1", "U+FEFF"),
    Case("a line separator", f"{SOURCE}description: a\u2028task: embed\n", "2:15", "U+2028"),
    Case("a paragraph separator", f"{SOURCE}description: a\u2029task: embed\n", "2:15", "U+2029"),
    Case("a next line", f"{SOURCE}description: a\x85task: embed\n", "2:15", "U+0085"),
    Case("a line separator in a comment", f"# x\u2028task: embed\n{SOURCE}", "1:4", "U+2028"),
    Case("text from right to left", f"{SOURCE}description: \u202egpj.exe\n", "2:14", "U+202E"),
    Case("a tab as indentation", "source:\n\trepo: a/b\n", "2:1", "a tab is used for indentation"),
    Case("a tab after spaces", "source:\n  repo: a/b\n \ttrack: true\n", "3:2", "a tab is used"),
    # Ordinary slips.
    Case(
        "a conflict of a merge",
        f"<<<<<<< HEAD\n{SOURCE}=======\n{SOURCE}>>>>>>> x\n",
        "2:7",
        "a ':' is not expected",
    ),
    Case("an encrypted file", b"\0GITCRYPT\0" + bytes(range(256)), "3:115", "0x80 is not UTF-8"),
    Case(
        "a page instead of a file",
        "<!DOCTYPE html>\n<html>404: Not Found</html>\n",
        "2:10",
        "a ':' is not expected",
    ),
    Case("a pointer of Git LFS", "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "1:1", ""),
]

PLAIN = [
    Plain("no as text", f"{SOURCE}description: no\n", "description", "no"),
    Plain("a date as text", f"{SOURCE}description: 2026-01-02\n", "description", "2026-01-02"),
    Plain("a sexagesimal as text", f"{SOURCE}description: 22:22\n", "description", "22:22"),
    Plain("an underscored number as text", f"{SOURCE}description: 1_000\n", "description", "1_000"),
    Plain("no octal of YAML 1.1", f"{SOURCE}lifecycle: {{priority: 012}}\n", "lifecycle.priority", 12),
    Plain("an octal of YAML 1.2", f"{SOURCE}lifecycle: {{priority: 0o12}}\n", "lifecycle.priority", 10),
    Plain("Norway in a list", f"{SOURCE}aliases: [no, on, y]\n", "aliases", ["no", "on", "y"]),
    Plain("a byte order mark", f"\ufeff{SOURCE}description: x\n", "description", "x"),
    Plain("line ends of Windows", "source: {repo: org/good}\r\ndescription: x\r\n", "description", "x"),
    Plain("characters beyond the first plane", f"{SOURCE}description: \U0001f600\n", "description", "\U0001f600"),
]
