"""What decides the shape of the model. Imports pydantic only."""

from pydantic import Field, model_validator

from tessera.config import Section


class ExpertSettings(Section):
    """A mixture in place of each feed-forward part: many small experts, of which a router gives a token a few.

    No token is ever dropped, and the weights of a token's experts add up to one. The defaults are DBRX's 16 choose 4,
    with as many products a token as the demo's dense `ffn_width` of 384.
    """

    count: int = Field(16, ge=2)
    """Experts in a layer."""
    active: int = Field(4, ge=1)
    """Experts that a token visits; at most `count`."""
    width: int = Field(96, ge=8, multiple_of=8)
    """Inner width of one expert; grouped products want multiples of 8."""

    @model_validator(mode="after")
    def _enough(self) -> "ExpertSettings":
        if self.active > self.count:
            raise ValueError(f"experts.active is {self.active}, wanted at most experts.count ({self.count})")
        return self


class ModelSettings(Section):
    """A decoder of Qwen3's architecture from its dimensions, or a local pretrained folder.

    The defaults are the demo's: 1.9 M parameters with a vocabulary of 4096, of which 0.5 M are an embedding that costs
    no products; small enough that two CPU cores bring it past its baselines in a minute and a half.
    """

    path: str | None = None
    """A local folder in Hugging Face format to start from (config.json, *.safetensors); the dimensions below are then
    not used. Its vocabulary must be the tokenizer's."""
    layers: int = Field(4, ge=1)
    """Decoder blocks."""
    width: int = Field(128, ge=8)
    """Width of the residual stream."""
    heads: int = Field(2, ge=1)
    """Attention heads for queries."""
    kv_heads: int = Field(2, ge=1)
    """Attention heads for keys and values; must divide `heads`."""
    head_dim: int | None = Field(None, ge=2, multiple_of=2)
    """Width of a head; null means `width / heads`."""
    ffn_width: int = Field(384, ge=8)
    """Inner width of the gated feed-forward part; not used with `experts`."""
    experts: ExpertSettings | None = None
    """A mixture of experts in every layer (Qwen3-MoE's architecture); null is dense."""
    tie_embeddings: bool = False
    """Whether the output projection is the embedding itself."""
    rope_theta: float = Field(10_000.0, gt=1)
    """Base of the rotary position embedding."""
    norm_epsilon: float = Field(1e-6, gt=0)
    """Added to the mean square in every RMS norm."""
    context: int | None = Field(None, ge=16)
    """Longest sequence that the model declares, in tokens; null means the shard set's `seq_len`."""

    @model_validator(mode="after")
    def _divisible(self) -> "ModelSettings":
        if self.heads % self.kv_heads:
            raise ValueError(f"model.heads is {self.heads}, which model.kv_heads ({self.kv_heads}) does not divide")
        if self.head_dim is None and self.width % (2 * self.heads):
            raise ValueError(
                f"model.width is {self.width}, wanted a multiple of 2 x model.heads ({2 * self.heads}); "
                "or give model.head_dim"
            )
        if self.experts is not None and self.width % 8:
            raise ValueError(f"model.width is {self.width}, wanted a multiple of 8 with model.experts")
        return self
