"""Label sets as users write them, converted to the contract's `LabelSet`; pure functions on scores and marks.

Of these `sampling`, `calibrating` and `thresholds` need numpy. No module here runs a model or reads rows.
"""
