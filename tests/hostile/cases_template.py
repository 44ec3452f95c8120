"""The operator's template gone wrong, and model files that hope to be templates."""

from typing import NamedTuple

from .cases_yaml import SOURCE
from .conftest import Plain


class TemplateCase(NamedTuple):
    """A template that does its harm to the model `sick` only.

    Attributes:
        name: What it tries.
        text: What stands where the application of `sick` should.
        says: Part of the problem that is reported.
    """

    name: str
    text: str
    says: str


_ONE = '{"args": {"llm_configs": [{"runtime_env": {"env_vars": {"RECONCILE_MODEL": %s}}}]}}'
_WITH = '{"args": {"llm_configs": [{"runtime_env": {"env_vars": {"RECONCILE_MODEL": "sick"}}}]}, "x": %s}'
_DEEP = _WITH % "{% for x in range(900) %}[{% endfor %}{% for x in range(900) %}]{% endfor %}"

CASES = [
    # Python below the template.
    TemplateCase("an object's class", "{{ model.__class__ }}", "unsafe"),
    TemplateCase("an object's class by a filter", "{{ model | attr('__class__') }}", "unsafe"),
    TemplateCase("an object's class by an index", "{{ model['__class__'] }}", "unsafe"),
    TemplateCase("a class of text", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    TemplateCase("a class by a format", "{{ '{0.__class__.__mro__}'.format(model) }}", "unsafe"),
    TemplateCase("a class by a mapped format", "{{ '{x.__class__}'.format_map({'x': model}) }}", "unsafe"),
    TemplateCase("the globals of a function", "{{ lipsum.__globals__ }}", "unsafe"),
    TemplateCase("the globals of a macro", "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}", "unsafe"),
    TemplateCase("the environment of a cycler", "{{ cycler.__init__.__globals__.os.environ }}", "unsafe"),
    TemplateCase("the template itself", "{{ self.__init__.__globals__ }}", "unsafe"),
    TemplateCase("Python's import", "{{ __import__('os').system('id') }}", "'__import__' is undefined"),
    TemplateCase("a file of Python's", "{{ open('/etc/passwd').read() }}", "'open' is undefined"),
    TemplateCase("the settings of Flask's", "{{ config.SECRET_KEY }}", "'config' is undefined"),
    # It may read what it is given, and not change it for the next model.
    TemplateCase("a change of the model", "{{ model.update({'name': 'x'}) }}", "unsafe"),
    TemplateCase("a change of the arguments", "{{ engine_kwargs.clear() }}", "unsafe"),
    TemplateCase("a change of a list", "{{ model.aliases.append('x') }}", "unsafe"),
    # Other files.
    TemplateCase("an included file", "{% include '/etc/passwd' %}", "no loader"),
    TemplateCase("an included file above", "{% include '../../reconcile.toml' %}", "no loader"),
    TemplateCase("an imported file", "{% import '/etc/passwd' as x %}", "no loader"),
    TemplateCase("names of a file", "{% from '/etc/passwd' import root %}", "no loader"),
    TemplateCase("an included file by a variable", "{% include model.description %}", "no loader"),
    # Names and sums that are none.
    TemplateCase("an unknown name", "{{ nothing }}", "'nothing' is undefined"),
    TemplateCase("an unknown field", "{{ model.nothing }}", "no attribute 'nothing'"),
    TemplateCase("an unknown field deeper", "{{ model.engine.nothing.more }}", "no attribute 'nothing'"),
    TemplateCase("an unknown filter's input", "{{ nothing | tojson }}", "Undefined is not JSON"),
    TemplateCase("a division by nothing", "{{ 1 // 0 }}", "by zero"),
    TemplateCase("a function that is none", "{{ model.name() }}", "not callable"),
    TemplateCase("what JSON cannot hold", "{{ range | tojson }}", "not JSON serializable"),
    TemplateCase("a recursion without end", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    TemplateCase("a range without end", "{% for x in range(10 ** 12) %}x{% endfor %}", "more than 100000 turns"),
    # Output that is no application of this model.
    TemplateCase("nothing", "", "made no JSON"),
    TemplateCase("half of it", '{"args": [', "made no JSON"),
    TemplateCase("two of it", "{}{}", "made no JSON"),
    TemplateCase("Python instead of JSON", "{{ model }}", "made no JSON"),
    TemplateCase("a number", "7", "must make one Serve application"),
    TemplateCase("a list", "[]", "must make one Serve application"),
    TemplateCase("null", "null", "must make one Serve application"),
    TemplateCase("an empty application", "{}", "RECONCILE_MODEL"),
    TemplateCase("the application of another model", _ONE % '"steady"', "to the model's name (sick)"),
    TemplateCase("the application of nobody", _ONE % "null", "to the model's name (sick)"),
    TemplateCase("an integer of 5,000 digits", _WITH % "{{ '9' * 5000 }}", "made no JSON"),
    TemplateCase("a list of environments", '{"args": {"llm_configs": [[]]}}', "RECONCILE_MODEL"),
]

# JSON to Python's reader, and to no other; or too deep for it.
NO_JSON = [
    TemplateCase("99,000 lists in each other", "{% for x in range(99000) %}[{% endfor %}", "nests deeper"),
    TemplateCase("900 lists in each other", _DEEP, "nests deeper"),
    TemplateCase("no number", _WITH % "NaN", "made no JSON"),
    TemplateCase("infinity", _WITH % "Infinity", "made no JSON"),
]

DOES_NOT_COMPILE = [
    TemplateCase("an open block", "{% if x %}", "application.json.j2"),
    TemplateCase("an unknown block", "{% evil %}", "unknown tag 'evil'"),
    TemplateCase("an unknown filter", "{{ model | evil }}", "No filter named 'evil'"),
    TemplateCase("an unknown test", "{{ model is evil }}", "No test named 'evil'"),
    TemplateCase("an open quote", "{{ 'x }}", "application.json.j2"),
    TemplateCase("an extension", "{% do model.clear() %}", "unknown tag 'do'"),
]

# Python reads it as infinity, which no JSON is, and which is unlike itself in every comparison.
TOO_LARGE = TemplateCase("a number too large", _WITH % "1e999", "made no JSON")

# Each may take this much memory and this long, and no more.
BOUND_BYTES = 64 * 2**20
BOUND_SECONDS = 5.0
BOMBS = [
    TemplateCase("a product of text", "{{ 'a' * (10 ** 8) }}", "more than"),
    TemplateCase("a product of lists", "{{ ([0] * (10 ** 7)) | length }}", "more than"),
    TemplateCase("a width of a format", "{{ '%100000000d' % 1 }}", "not allowed"),
    TemplateCase("text in the middle", "{{ 'a' | center(100000000) }}", "center"),
    TemplateCase("text on the left", "{{ 'a'.ljust(100000000) }}", "unsafe"),
    TemplateCase("a power", "{{ 10 ** (10 ** 8) }}", "a power"),
    TemplateCase(
        "a loop in a loop",
        "{% for x in range(90000) %}{% for y in range(90000) %}" + "x" * 500 + "{% endfor %}{% endfor %}",
        "more than",
    ),
]
UNBOUNDED = [
    TemplateCase("a width of a new format", "{{ '{:100000000d}'.format(1) }}", "sick"),
    TemplateCase(
        "text that is doubled",
        "{% set x = namespace(t='aaaaaaaaaa') %}"
        "{% for i in range(24) %}{% set x.t = x.t ~ x.t %}{% endfor %}{{ x.t }}",
        "sick",
    ),
    TemplateCase("text that is replaced", "{{ ('a' * 900000) | replace('a', 'a' * 120) | length }}", "sick"),
    TemplateCase(
        "text that is joined",
        "{{ ['a' * 900000, 'b', 'c'] | join('a' * 900000) | length }}"
        "{{ (['a'] * 130) | join('a' * 900000) | length }}",
        "sick",
    ),
    TemplateCase(
        "text that is kept",
        "{% set x %}{% for i in range(150) %}{{ 'a' * 900000 }}{% endfor %}{% endset %}",
        "sick",
    ),
]
ENDLESS = [
    TemplateCase(
        "a silent loop in a loop",
        "{% for x in range(90000) %}{% for y in range(90000) %}{% endfor %}{% endfor %}",
        "sick",
    ),
]

_HOSTILE = {
    "an expression": "{{ 7 * 7 }}",
    "a statement": "{% for x in range(9) %}x{% endfor %}",
    "a comment": "{# nothing #}",
    "the end of a raw block": "{% endraw %}{{ model }}",
    "line ends": "a\nb\n\nc",
    "quotes": "\"'`",
    "an end of JSON": '"}]}, "import_path": "os:system", "x": {"y": ["',
    "backslashes": '\\\\\\" \\u0022',
    "markup": "</script><!-- & -->",
    "a shell": "$(id) ${HOME} `id` ; id",
    "a format": "%s %n {0.__class__}",
}

PLAIN = [
    *(
        Plain(f"{words} in a description", f"{SOURCE}description: {_quoted}\n", "description", value)
        for words, value in _HOSTILE.items()
        for _quoted in ['"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"']
    ),
    Plain("an expression in a label", f"{SOURCE}labels: {{a: '{{{{ 7 * 7 }}}}'}}\n", "labels.a", "{{ 7 * 7 }}"),
    Plain(
        "an expression in an argument",
        f"{SOURCE}engine: {{args: {{hf_overrides: {{'{{{{x}}}}': '{{% x %}}'}}}}}}\n",
        "engine.args.hf_overrides",
        {"{{x}}": "{% x %}"},
    ),
]
