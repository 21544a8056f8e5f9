#!/usr/bin/env python3
"""The job's Validationcommand: is what generate.py wrote physics?"""

import sys
import warnings

warnings.simplefilter("ignore")  # the ROOT wheel announces its alpha stage on every import

import ROOT  # noqa: E402

histograms = ROOT.TFile.Open("histograms.root")
multiplicity = histograms.Get("multiplicity")
momentum = histograms.Get("pt")
if multiplicity.GetEntries() < 1 or not 20 < multiplicity.GetMean() < 200:
    sys.exit(
        f"mean multiplicity {multiplicity.GetMean():.1f} of {multiplicity.GetEntries():.0f} events is no pp physics"
    )
if not 0.1 < momentum.GetMean() < 2.0:
    sys.exit(f"mean transverse momentum {momentum.GetMean():.2f} GeV/c is no pp physics")
with open("multiplicity.png", "rb") as picture:
    if picture.read(8) != b"\x89PNG\r\n\x1a\n":
        sys.exit("multiplicity.png is no PNG")
print(f"valid: {multiplicity.GetEntries():.0f} events")
