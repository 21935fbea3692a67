"""What options of the module are if not given, where that hangs on others; why is in the guide."""

from __future__ import annotations

from ._likelihoods import COUNT_LIKELIHOODS

N_COMPONENTS = 200
LAMBDA_CLS_PER_GENE = 0.01
"""Weight of the classification: the reconstruction is a sum over genes."""
LEAST_PER_GENE = {"likelihood": 0.0, "both": 2.0, "squared_error": 5.0}
"""Counts per gene that cells are scaled to at least, by what trains the codes."""
LAMBDA_DIS_PER_GENE = {"likelihood": 0.01, "both": 0.03, "squared_error": 0.05}
"""Weight of the disentanglement, by what trains the codes: errors of values have more gradient."""


def default_n_components(encoder: str, n_labels: int, n_batch: int) -> int:
    """Components that the encoder of ``z_bio`` sees; 0 is the genes.

    It sees genes where it is one with that of ``z_nio``, where labels tell what matters, and where
    there is no second batch whose cells could be matched.
    """
    return 0 if encoder == "shared" or n_labels > 1 or n_batch == 1 else N_COMPONENTS


def default_code_loss(
    gene_likelihood: str, log_normalize: bool, n_components: int, kl_weight_bio: float
) -> str:
    """What trains the codes: both errors, where the squared one is of logarithms or of values."""
    comparable = gene_likelihood != "normal" and (log_normalize or gene_likelihood == "mse")
    return "both" if comparable and n_components > 0 and kl_weight_bio == 0 else "likelihood"


def default_target_sum(median_library: float, code_loss: str, n_input: int) -> float:
    """Library size that counts are scaled to."""
    return max(median_library, LEAST_PER_GENE[code_loss] * n_input)


def default_lambda_cls(n_input: int) -> float:
    """Weight of the classification."""
    return LAMBDA_CLS_PER_GENE * n_input


def default_lambda_dis(
    gene_likelihood: str, code_loss: str, n_components: int, n_input: int
) -> float:
    """Weight of the disentanglement; an encoder that sees the genes, and the batch, bears least."""
    trained_by = code_loss if gene_likelihood in COUNT_LIKELIHOODS else "squared_error"
    return LAMBDA_DIS_PER_GENE[trained_by if n_components > 0 else "likelihood"] * n_input


def default_spherical(kl_weight_bio: float, n_latent_bio: int) -> bool:
    """Whether ``z_bio`` is on a sphere, which leaves a point or a circle too little room."""
    return kl_weight_bio == 0 and n_latent_bio > 2


def default_axes(spherical: bool, kl_weight_bio: float, n_labels: int) -> bool:
    """Whether axes are made longer: codes on a sphere are spread, but where labels hold them."""
    return spherical and kl_weight_bio == 0 and n_labels == 1


def default_power_of_axes(code_loss: str) -> float:
    """Power of the covariance that the axes of ``z_bio`` are made longer by."""
    return 0.25 if code_loss == "likelihood" else 0.5
