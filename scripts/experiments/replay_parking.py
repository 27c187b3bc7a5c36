"""Replay schedules on the recorded tables: stop for good, or park and promote.

    python scripts/experiments/replay_parking.py [--studies 300] [--out FILE]

Protocol, written before any of it was run.

*Studies.* A simulated study draws the networks of a table, or of a random half of it (so that every
study has other best networks), in random order. Of a whole table the study without pruning has 20,
40 or 100 trials; of a half, two fifths of the half. Every rule sees the same orders. At least 300
studies of every table and kind; fewer only for the calibrated `FlatnessPruner`, whose decisions are
those of the real class, and which is slow.

*Cost.* Epochs of training. A rule that looks at a signal pays for measuring it where it looks, as
`scripts/results/signals-cpu.json` says; validation, losses and parameters cost nothing. With four
workers all of them train at the same time, each an epoch in a unit of time, and what is spent is
the time multiplied by four.

*Regret.* A study returns, of its networks that are trained to the end, the one with the best final
validation accuracy, of equals the one with the lowest validation loss. Its regret is the best such
accuracy of the table (or half) less that network's; once more with test accuracies. With the
objectives accuracy and flatness: the share of the hypervolume that is not covered.

*What is compared.* For every rule
(1) the *share*: the epochs until the mean regret is that of the finished study without pruning,
    as a share of that study's epochs; a rule may take as many networks as fit;
(2) with the same number of trials: the share of the epochs, and the regret less that of the study
    without pruning, in points.
Intervals (95%) are from resampling studies and say nothing about other tables.

*Rules.*
- Nothing stopped; Optuna's median, successive halving and Hyperband, which stop for good, shown
  validation accuracy or training loss; the calibrated `FlatnessPruner`.
- One epoch (Egele et al. 2023): all networks are trained for i + 1 epochs, i = 0, 1, 2, 3; then the
  best eighth, or quarter, goes on to the end.
- Asynchronous successive halving with promotion (Li et al. 2020), of which 1/eta goes on from a
  rung: rungs 1 and 3 of 12, eta 4 or 3; rungs 1 and 4, eta 4; rungs 1, 2, 3 and 6, eta 2; the
  rung 1 alone, eta 4 or 8.
- Predicted gain: halving's rungs, but what goes on is the parked network, or the new one, with
  the largest expected improvement over the best of the complete ones per epoch that is still to be
  paid. Values are predicted from rung to rung by linear regression on the rank sum, learnt from the
  networks that have gone on; at least three of them, and halving decides before.
- The cascade: half of the networks, by the free signals, are trained at all; after one epoch a
  quarter goes on by the rank sum with flatness of all convolutions, or without it; after three a
  quarter by the training loss and validation loss.
- Each with every signal alone, and with rank sums of validation loss, training loss, parameters,
  flatness of all convolutions and the gradient's norm.

*Choice.* On the tables marked (t) (`tables.TUNING`), on random halves, one worker, one objective:
the rule with the least mean share. It has to rank by validation loss or accuracy among others: by
the training loss alone networks that overfit would be promoted, which no table here shows. Of rules
within .02 of the least share the one with the fewest signals, then with the fewest rungs, then the
one that needs no number of trials, is chosen: the first of these that applies. A rule that learns,
or measures, has to be better than that by more than .02. Judged on all other tables, once.
The default of `flatsearch run` becomes the chosen rule if there it takes at most .30 of the epochs
on whole tables (40 trials) and .40 on random halves, in the mean of the judged tables.
"""
