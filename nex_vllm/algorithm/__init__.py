"""The paper's method on recorded rows: novelty, segmentation, credit, weights, scores, selectors.

Pure numpy; scikit-learn and hmmlearn are loaded when the first response is segmented.
"""

from nex_vllm.algorithm.credit import Credit
from nex_vllm.algorithm.judgement import Judgement, judge_response
from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.scores import Masses, best_candidate, model_score, weighted_masses
from nex_vllm.algorithm.selectors import SELECTORS, Selector, get_selector
from nex_vllm.algorithm.signals import SIGNALS, CandidateTrace, Signal, measure_signals
from nex_vllm.algorithm.summary import CalibrationSummary
from nex_vllm.algorithm.weights import NeuronWeights, WeightAccumulator

__all__ = [
    "SELECTORS",
    "SIGNALS",
    "CalibrationSummary",
    "CandidateTrace",
    "Credit",
    "Judgement",
    "LearnedSelector",
    "Masses",
    "NeuronWeights",
    "ResponseRows",
    "Selector",
    "Signal",
    "WeightAccumulator",
    "best_candidate",
    "get_selector",
    "judge_response",
    "measure_signals",
    "model_score",
    "weighted_masses",
]
