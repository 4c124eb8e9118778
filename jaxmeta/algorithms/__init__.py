"""Algorithms: table of factories `(model, **options) -> MetaLearner`, one file each."""

from jaxmeta.algorithms.adapted import NORMS
from jaxmeta.algorithms.anil import anil, boil
from jaxmeta.algorithms.cavia import cavia
from jaxmeta.algorithms.cnp import cnp, cnp_distribution
from jaxmeta.algorithms.crammer_singer import svm_weights
from jaxmeta.algorithms.embedding import Head, embedding_learner
from jaxmeta.algorithms.gradient import Adaptation, gradient_learner
from jaxmeta.algorithms.imaml import imaml
from jaxmeta.algorithms.in_context import in_context
from jaxmeta.algorithms.maml import fomaml, maml
from jaxmeta.algorithms.maml_plus_plus import maml_plus_plus
from jaxmeta.algorithms.matching import matching, matching_fce
from jaxmeta.algorithms.meta_curvature import meta_curvature
from jaxmeta.algorithms.meta_sgd import meta_sgd
from jaxmeta.algorithms.nearest import nearest
from jaxmeta.algorithms.options import options_of
from jaxmeta.algorithms.pretrained import baseline, baseline_plus_plus
from jaxmeta.algorithms.protonet import protonet
from jaxmeta.algorithms.relation import relation
from jaxmeta.algorithms.reptile import reptile
from jaxmeta.algorithms.ridge import r2d2, ridge_weights
from jaxmeta.algorithms.scratch import scratch
from jaxmeta.algorithms.siamese import ALTERNATIVE, siamese
from jaxmeta.algorithms.svm import metaoptnet, metaoptnet_ridge

ALGORITHMS = {
    # By gradient steps.
    "maml": maml,
    "fomaml": fomaml,
    "imaml": imaml,
    "reptile": reptile,
    "meta-sgd": meta_sgd,
    "anil": anil,
    "boil": boil,
    "cavia": cavia,
    "maml++": maml_plus_plus,
    "meta-curvature": meta_curvature,
    # By comparing embeddings.
    "protonet": protonet,
    "matching": matching,
    "matching-fce": matching_fce,
    "relation": relation,
    "siamese": siamese,
    # To compare with: learning that is none, or none across tasks, or without tasks.
    "nearest": nearest,
    "scratch": scratch,
    "baseline": baseline,
    "baseline++": baseline_plus_plus,
    # By a convex problem on the embeddings.
    "r2d2": r2d2,
    "metaoptnet": metaoptnet,
    "metaoptnet-ridge": metaoptnet_ridge,
    # By a network that reads the support set.
    "in-context": in_context,
    "cnp": cnp,
}

# Rows that learn from pairs of one class, and so need two images of each; and what to do for want of them.
NEEDS_PAIRS = {"siamese": ALTERNATIVE}

__all__ = [
    "ALGORITHMS",
    "NEEDS_PAIRS",
    "NORMS",
    "Adaptation",
    "Head",
    "anil",
    "baseline",
    "baseline_plus_plus",
    "boil",
    "cavia",
    "cnp",
    "cnp_distribution",
    "embedding_learner",
    "fomaml",
    "gradient_learner",
    "imaml",
    "in_context",
    "maml",
    "maml_plus_plus",
    "matching",
    "matching_fce",
    "meta_curvature",
    "meta_sgd",
    "nearest",
    "options_of",
    "protonet",
    "relation",
    "reptile",
    "siamese",
    "scratch",
    "metaoptnet",
    "metaoptnet_ridge",
    "r2d2",
    "ridge_weights",
    "svm_weights",
]
