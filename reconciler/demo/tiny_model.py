"""A chat model small enough to be made on the spot: real files, random weights, so it speaks noise.

Used by `./start.sh --demo` and by the end-to-end tests. Needs torch, transformers and tokenizers, which come with
the engine; they are imported only when a model is made.
"""

import shutil
import tempfile
from pathlib import Path

_CORPUS = ["the quick brown fox jumps over the lazy dog"] * 10
_VOCABULARY = 512
_BEGIN, _END = "<s>", "</s>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
)


def tiny_model(folder: Path, *, seed: int = 0, max_position_embeddings: int = 2048) -> Path:
    """Make a Llama of 2 layers and 128 dimensions, with tokenizer and chat template, in `folder`.

    The same arguments give the same weights. The model appears in one rename, so a folder that is there is whole.

    Args:
        folder: Where the model goes. It must not exist yet; its parent is made if need be.
        seed: Seed of the random weights.
        max_position_embeddings: The longest context that the model's configuration allows.

    Returns:
        `folder`.

    Raises:
        FileExistsError: `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _save_tokenizer(unfinished)
        _save_weights(unfinished, seed=seed, max_position_embeddings=max_position_embeddings)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_BEGIN, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BEGIN, eos_token=_END)
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(folder)


def _save_weights(folder: Path, *, seed: int, max_position_embeddings: int) -> None:
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay what they were
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
