#!/usr/bin/env python3
"""Generate pp events with Pythia 8 and fill histograms with ROOT."""

import argparse
import os
import warnings

warnings.simplefilter("ignore")  # the ROOT wheel announces its alpha stage on every import

import pythia8mc  # noqa: E402
import ROOT  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--events", type=int, default=200)
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()

ROOT.gROOT.SetBatch(True)
ROOT.gErrorIgnoreLevel = ROOT.kWarning

generator = pythia8mc.Pythia("", False)
for line in (
    "Print:quiet = on",
    "Beams:eCM = 13600.",
    "SoftQCD:inelastic = on",
    "Random:setSeed = on",
    f"Random:seed = {options.seed}",
):
    generator.readString(line)
if not generator.init():
    raise SystemExit("Pythia cannot be initialised")

multiplicity = ROOT.TH1D("multiplicity", "Charged particles per event;N_{ch};events", 60, 0, 300)
momentum = ROOT.TH1D("pt", "Transverse momentum;p_{T} (GeV/c);particles", 100, 0, 10)
for _ in range(options.events):
    if not generator.next():
        continue
    charged = [p for p in generator.event if p.isFinal() and p.isCharged()]
    multiplicity.Fill(len(charged))
    for particle in charged:
        momentum.Fill(particle.pT())

output = ROOT.TFile("histograms.root", "RECREATE")
multiplicity.Write()
momentum.Write()
output.Close()

canvas = ROOT.TCanvas("canvas", "", 900, 600)
multiplicity.Draw("E")
canvas.SaveAs("multiplicity.png")

period = os.environ.get("ALIEN_JDL_LHCPERIOD", "no period")
print(f"{period}: {options.events} events, mean multiplicity {multiplicity.GetMean():.1f}")
