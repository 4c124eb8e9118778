"""From a trained run and a folder of a few labelled images to the labels of the rest."""

from jaxmeta.serve.classifier import Classifier
from jaxmeta.serve.front import adapt_run, load_classifier

__all__ = ["Classifier", "adapt_run", "load_classifier"]
