"""What of a seen picture is in the EEG? The helpers of the SGDM study, a room for each step.

=========== ===================================================== ============
room        what is in it                                         notebooks
=========== ===================================================== ============
workflow    how a study runs and what it leaves behind            all
stimuli     pictures, drawn or read, and their structure          00
datasets    what was shown, what was recorded, who trains on what 00
simulation  people whose brains are known                         00
signals     from a recording to trials                            01
decoding    what the EEG says                                     02, 03, 04
generation  from conditions to a picture                          05
metrics     scores, how certain they are, audits                  06
figures     figures and the page                                  07
experiments what only an experiment needs                         10 and later
=========== ===================================================== ============

Notebooks import rooms (``from sgdm_utils import metrics``) and take names from them
(``metrics.pixcorr``); nothing is loaded before it is used. A room may know the rooms above it in
this table, never one below (import-linter, in ``make lint``).
"""

__version__ = "0.1.0"
