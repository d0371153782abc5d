"""One HTML page and some pictures of what was recorded, learned or compared; no engine and no other host is needed."""

from nex_vllm.evaluation.report.sources import ReportPlan
from nex_vllm.evaluation.report.writing import write_report

__all__ = ["ReportPlan", "write_report"]
