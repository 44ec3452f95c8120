"""Well-known open models that vLLM 0.29 serves, so that a model file can be written without knowing a repository.

A help for choosing, offline: whatever is fetched is looked up at the hub. An entry's name becomes the model's, so
it is a valid one.
"""

import difflib
from dataclasses import dataclass

from reconciler.core.spec import Task

_NEAR = 5
_ALIKE = 0.6


@dataclass(frozen=True, slots=True)
class Entry:
    """One model.

    Attributes:
        parameters: Billions of parameters, all experts counted.
        context: Tokens that the model was published for.
        size_gib: GiB of its weights as published: two bytes a parameter, or fewer where it is quantised.
        licence: As the hub calls it.
        gated: Its terms have to be accepted before the hub gives its files.
        pickle: It has no safetensors, so it is fetched only where the operator allows pickles.
    """

    name: str
    repo: str
    task: Task
    parameters: float
    context: int
    size_gib: float
    licence: str
    gated: bool
    pickle: bool
    tags: tuple[str, ...]
    description: str


# Two lines an entry: name, repository, task, billions of parameters, context, GiB, licence, words to find it by
# (`gated` and `pickle` are facts too); then a sentence.
_TABLE = """
qwen3-0.6b | Qwen/Qwen3-0.6B | generate | 0.6 | 40960 | 1.4 | apache-2.0 | chat reasoning tools small
  A very small chat model that can think before it answers; good for trying things out, even on a CPU.
qwen3-4b-instruct | Qwen/Qwen3-4B-Instruct-2507 | generate | 4 | 262144 | 7.5 | apache-2.0 | chat tools long-context
  A small chat model with a very long context that answers directly, without thinking first.
qwen3-8b | Qwen/Qwen3-8B | generate | 8.2 | 40960 | 15.3 | apache-2.0 | chat reasoning tools
  A general chat model for one GPU that can think before it answers.
qwen3-8b-fp8 | Qwen/Qwen3-8B-FP8 | generate | 8.2 | 40960 | 8.8 | apache-2.0 | chat reasoning tools fp8 quantised
  Qwen3 8B with its weights in FP8, for GPUs that compute in it.
qwen3-8b-awq | Qwen/Qwen3-8B-AWQ | generate | 8.2 | 40960 | 5.7 | apache-2.0 | chat reasoning tools awq 4-bit quantised
  Qwen3 8B with its weights in 4 bits (AWQ), for GPUs with little memory.
qwen3-14b | Qwen/Qwen3-14B | generate | 14.8 | 40960 | 27.5 | apache-2.0 | chat reasoning tools
  A general chat model that can think before it answers, for one large GPU.
qwen3-32b | Qwen/Qwen3-32B | generate | 32.8 | 40960 | 61 | apache-2.0 | chat reasoning tools large
  The largest dense model of Qwen3, for one GPU of 80 GB or two of 48 GB.
qwen3-30b-a3b-instruct | Qwen/Qwen3-30B-A3B-Instruct-2507 | generate | 30.5 | 262144 | 56.9 | apache-2.0 | chat tools moe
  A mixture of experts that computes with 3 billion of its parameters at a time: fast for what it knows.
qwen3-coder-30b-a3b | Qwen/Qwen3-Coder-30B-A3B-Instruct | generate | 30.5 | 262144 | 56.9 | apache-2.0 | code tools moe
  A mixture of experts for programming and agents, with a very long context.
qwen2.5-0.5b-instruct | Qwen/Qwen2.5-0.5B-Instruct | generate | 0.5 | 32768 | 0.92 | apache-2.0 | chat tools small
  A tiny chat model for tests and simple tasks.
qwen2.5-7b-instruct | Qwen/Qwen2.5-7B-Instruct | generate | 7.6 | 32768 | 14.2 | apache-2.0 | chat tools
  A general chat model for one GPU.
qwen2.5-7b-instruct-awq | Qwen/Qwen2.5-7B-Instruct-AWQ | generate | 7.6 | 32768 | 5.2 | apache-2.0 | chat awq 4-bit quantised
  Qwen2.5 7B with its weights in 4 bits (AWQ), for GPUs with little memory.
qwen2.5-coder-7b-instruct | Qwen/Qwen2.5-Coder-7B-Instruct | generate | 7.6 | 32768 | 14.2 | apache-2.0 | code chat
  A chat model for programming, for one GPU.
qwen2.5-coder-32b-instruct | Qwen/Qwen2.5-Coder-32B-Instruct | generate | 32.8 | 32768 | 61 | apache-2.0 | code chat large
  A strong chat model for programming.
qwen2.5-vl-7b-instruct | Qwen/Qwen2.5-VL-7B-Instruct | generate | 8.3 | 128000 | 15.4 | apache-2.0 | vision image video chat
  A chat model that sees images and videos.
llama-3.1-8b-instruct | meta-llama/Llama-3.1-8B-Instruct | generate | 8 | 131072 | 15 | llama3.1 | gated chat tools
  Meta's general chat model for one GPU, with a long context.
llama-3.1-8b-instruct-fp8 | RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8 | generate | 8 | 131072 | 8.5 | llama3.1 | chat fp8 quantised
  Llama 3.1 8B with its weights in FP8, for GPUs that compute in it.
llama-3.2-1b-instruct | meta-llama/Llama-3.2-1B-Instruct | generate | 1.2 | 131072 | 2.3 | llama3.2 | gated chat small
  Meta's smallest chat model.
llama-3.2-3b-instruct | meta-llama/Llama-3.2-3B-Instruct | generate | 3.2 | 131072 | 6 | llama3.2 | gated chat small
  Meta's small chat model for text, with a long context.
llama-3.3-70b-instruct | meta-llama/Llama-3.3-70B-Instruct | generate | 70.6 | 131072 | 131.4 | llama3.3 | gated chat tools large
  Meta's large dense chat model, for two or more GPUs of 80 GB.
mistral-7b-instruct | mistralai/Mistral-7B-Instruct-v0.3 | generate | 7.2 | 32768 | 13.5 | apache-2.0 | gated chat tools
  The classic small chat model of Mistral AI.
mixtral-8x7b-instruct | mistralai/Mixtral-8x7B-Instruct-v0.1 | generate | 46.7 | 32768 | 87 | apache-2.0 | chat moe large
  A mixture of experts that computes with 13 billion of its parameters at a time.
ministral-3-3b-instruct | mistralai/Ministral-3-3B-Instruct-2512 | generate | 3.8 | 262144 | 4.3 | apache-2.0 | chat vision fp8 small
  A small chat model that sees images, published in FP8.
ministral-3-14b-instruct | mistralai/Ministral-3-14B-Instruct-2512 | generate | 13.9 | 262144 | 14.6 | apache-2.0 | chat vision fp8
  A chat model for one GPU that sees images, published in FP8.
gemma-2-9b-it | google/gemma-2-9b-it | generate | 9.2 | 8192 | 17.2 | gemma | gated chat
  Google's chat model of the second generation, for text.
gemma-3-1b-it | google/gemma-3-1b-it | generate | 1 | 32768 | 1.9 | gemma | gated chat small
  Google's smallest chat model of the third generation, for text.
gemma-3-4b-it | google/gemma-3-4b-it | generate | 4.3 | 131072 | 8 | gemma | gated chat vision image
  A small chat model for many languages that sees images.
gemma-3-27b-it | google/gemma-3-27b-it | generate | 27.4 | 131072 | 51.1 | gemma | gated chat vision image large
  The largest Gemma 3; it knows many languages and sees images.
phi-4 | microsoft/phi-4 | generate | 14.7 | 16384 | 27.3 | mit | chat reasoning mathematics
  Microsoft's chat model, strong at mathematics and science for its size.
phi-4-mini-instruct | microsoft/Phi-4-mini-instruct | generate | 3.8 | 131072 | 7.1 | mit | chat tools small
  A small chat model with a long context.
deepseek-r1-distill-qwen-1.5b | deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B | generate | 1.8 | 131072 | 3.3 | mit | reasoning small
  A very small model that thinks before it answers, distilled from DeepSeek-R1.
deepseek-r1-distill-llama-8b | deepseek-ai/DeepSeek-R1-Distill-Llama-8B | generate | 8 | 131072 | 15 | mit | reasoning
  A model for one GPU that thinks before it answers, distilled from DeepSeek-R1.
deepseek-r1-distill-qwen-32b | deepseek-ai/DeepSeek-R1-Distill-Qwen-32B | generate | 32.8 | 131072 | 61 | mit | reasoning large
  The strongest model for one GPU of 80 GB that was distilled from DeepSeek-R1.
gpt-oss-20b | openai/gpt-oss-20b | generate | 21 | 131072 | 12.8 | apache-2.0 | chat reasoning tools moe mxfp4
  OpenAI's lighter open model: a mixture of experts that thinks, published in 4 bits (MXFP4).
gpt-oss-120b | openai/gpt-oss-120b | generate | 117 | 131072 | 60.8 | apache-2.0 | chat reasoning tools moe mxfp4 large
  OpenAI's heavier open model, which fits on one GPU of 80 GB in 4 bits (MXFP4).
glm-4-9b | zai-org/GLM-4-9B-0414 | generate | 9.4 | 32768 | 17.5 | mit | chat tools chinese
  A chat model of Z.ai for one GPU, in Chinese and English.
smollm2-135m-instruct | HuggingFaceTB/SmolLM2-135M-Instruct | generate | 0.13 | 8192 | 0.25 | apache-2.0 | chat tiny cpu
  A tiny chat model: fetched in seconds, for tests and demonstrations on a CPU.
smollm3-3b | HuggingFaceTB/SmolLM3-3B | generate | 3.1 | 65536 | 5.7 | apache-2.0 | chat reasoning small
  A small chat model from open data, for six languages, that can think before it answers.
granite-3.3-8b-instruct | ibm-granite/granite-3.3-8b-instruct | generate | 8.2 | 131072 | 15.2 | apache-2.0 | chat tools
  IBM's chat model for business texts, with a long context.
olmo-2-7b-instruct | allenai/OLMo-2-1124-7B-Instruct | generate | 7.3 | 4096 | 13.6 | apache-2.0 | chat open-data
  A chat model whose data, code and training are all public.
bge-m3 | BAAI/bge-m3 | embed | 0.57 | 8192 | 2.1 | mit | pickle embedding multilingual retrieval
  Embeddings of texts in more than a hundred languages; its weights are published as a pickle only.
bge-small-en-v1.5 | BAAI/bge-small-en-v1.5 | embed | 0.033 | 512 | 0.12 | mit | embedding english retrieval small
  Embeddings of short English texts, quick even on a CPU.
qwen3-embedding-0.6b | Qwen/Qwen3-Embedding-0.6B | embed | 0.6 | 32768 | 1.1 | apache-2.0 | embedding multilingual retrieval code
  Embeddings of long texts and code in more than a hundred languages.
all-minilm-l6-v2 | sentence-transformers/all-MiniLM-L6-v2 | embed | 0.023 | 512 | 0.08 | apache-2.0 | embedding english small cpu
  The classic small embedding model for English sentences, quick even on a CPU.
multilingual-e5-small | intfloat/multilingual-e5-small | embed | 0.12 | 512 | 0.44 | mit | embedding multilingual small
  Embeddings of short texts in about a hundred languages.
nomic-embed-text-v1.5 | nomic-ai/nomic-embed-text-v1.5 | embed | 0.14 | 8192 | 0.51 | apache-2.0 | embedding english retrieval
  Embeddings of English texts that can be cut to fewer dimensions; vLLM serves 2048 tokens of its context.
gte-modernbert-base | Alibaba-NLP/gte-modernbert-base | embed | 0.15 | 8192 | 0.28 | apache-2.0 | embedding english retrieval code
  Embeddings of long English texts and code from a small model.
bge-reranker-v2-m3 | BAAI/bge-reranker-v2-m3 | rerank | 0.57 | 8192 | 2.1 | apache-2.0 | reranker multilingual
  Puts search results in order, in many languages.
qwen3-reranker-0.6b | Qwen/Qwen3-Reranker-0.6B | rerank | 0.6 | 40960 | 1.1 | apache-2.0 | reranker multilingual code
  Puts search results in order, in more than a hundred languages, with long texts.
whisper-small | openai/whisper-small | transcribe | 0.24 | 448 | 0.9 | apache-2.0 | speech audio asr multilingual small
  Writes down speech in many languages; small.
whisper-large-v3-turbo | openai/whisper-large-v3-turbo | transcribe | 0.81 | 448 | 1.5 | mit | speech audio asr multilingual
  Writes down speech in many languages, nearly as well as the large model and much faster.
"""  # noqa: E501 -- rows of a table


def _entry(facts: str, description: str) -> Entry:
    name, repo, task, parameters, context, size, licence, words = (part.strip() for part in facts.split("|"))
    tags = tuple(words.split())
    return Entry(
        name=name,
        repo=repo,
        task=Task(task),
        parameters=float(parameters),
        context=int(context),
        size_gib=float(size),
        licence=licence,
        gated="gated" in tags,
        pickle="pickle" in tags,
        tags=tags,
        description=description.strip(),
    )


_LINES = _TABLE.strip().splitlines()
CATALOGUE: tuple[Entry, ...] = tuple(map(_entry, _LINES[::2], _LINES[1::2]))
"""All entries, those of a family together."""


def find(text: str) -> Entry | None:
    """The entry with this name or repository, however it is capitalised."""
    wanted = text.casefold()
    return next((entry for entry in CATALOGUE if wanted in (entry.name.casefold(), entry.repo.casefold())), None)


def matches(query: str) -> tuple[Entry, ...]:
    """The entries that have every word of the query somewhere; all of them where there is no word."""
    words = query.casefold().split()
    return tuple(entry for entry in CATALOGUE if all(word in _haystack(entry) for word in words))


def near(query: str) -> tuple[Entry, ...]:
    """The entries whose names, or parts of them, look most like the query, the nearest first."""
    wanted = query.casefold().strip().rpartition("/")[2]
    scored = [(_likeness(wanted, entry.name), entry) for entry in CATALOGUE]
    alike = sorted((pair for pair in scored if pair[0] >= _ALIKE), key=lambda pair: -pair[0])
    return tuple(entry for _, entry in alike[:_NEAR])


def search(query: str) -> tuple[Entry, ...]:
    """The entries that match, or, where none does, those with a near name."""
    return matches(query) or near(query)


def _haystack(entry: Entry) -> str:
    return " ".join((entry.name, entry.repo, entry.task.value, *entry.tags, entry.description)).casefold()


def _likeness(wanted: str, name: str) -> float:
    # A part too, so that `llamma` finds what begins with `llama`.
    return max(difflib.SequenceMatcher(None, wanted, part).ratio() for part in (name, *name.split("-")))
