"""Reports of runs: what every chart shows as plain records, and pages and pictures made of them.

history.py, curves.py, sensitivity.py, timeline.py and gathering.py compute; charts.py (plotly, for the page) and
drawings.py (matplotlib, PNG files) only draw what these have found.
"""
