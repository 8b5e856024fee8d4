"""The older provider classes' view of the table: one flat set of arguments. Nothing else depends on it."""

from .family import megatron_values
from .hf_config import HFConfig, read_hf_config
from .model_config import decoded
from .registry import family_of


def to_megatron_provider_kwargs(hf_config: HFConfig) -> dict[str, object]:
    """Megatron field name -> value, outer and transformer fields side by side, as provider classes take them.

    Dtypes, enums and the activation are objects, as on the config of `to_megatron_model_config`. Yarn's values, which
    providers declare, are among them. BadInputError as there.
    """
    config, source = read_hf_config(hf_config)
    family = family_of(config)
    return decoded(megatron_values(family, family.to_mcore(config), source))
