"""Headings and formats of the figures of a simulated run, for tables."""

COLUMNS = {
    "jct_mean_s": ("JCT mean", "{:,.0f} s"),
    "jct_p50_s": ("p50", "{:,.0f} s"),
    "jct_p99_s": ("p99", "{:,.0f} s"),
    "jct_less_gaps_mean_s": ("less gaps", "{:,.0f} s"),
    "admission_mean_s": ("admission", "{:,.0f} s"),
    "ttft_p50_s": ("TTFT p50", "{:,.2f} s"),
    "ttft_p99_s": ("p99", "{:,.1f} s"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "recomputed_share": ("recomputed", "{:.1%}"),
    "hit_share": ("hits", "{:.0%}"),
    "slo_share": ("SLO", "{:.0%}"),
    "stretch_max": ("stretch", "{:,.0f}"),
}
"""Heading and format string by the key of a figure (see `report.figures`)."""

__all__ = ["COLUMNS"]
