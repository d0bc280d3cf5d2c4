"""AALR as plain nested loops over a table of losses, sharing no code with the library."""

import math


class _OutOfEpochsError(Exception):
    pass


def run(losses, *, rate, restore="nonfinite", phase1_restore="initial", patience=10, stop=True):
    """Rows (event, rate of the next epoch, patience, parameters), one an epoch.

    The "parameters" after epoch t are the number t + 1; before training 0.
    """
    rows, theta, checkpoint = [], 0, 0
    epoch = 0

    def train():
        nonlocal theta, epoch
        if epoch == len(losses):
            raise _OutOfEpochsError
        theta = epoch + 1
        epoch += 1
        return losses[epoch - 1]

    def bad(loss):
        return math.isnan(loss) or math.isinf(loss)

    try:
        best, count = math.inf, 0
        while count < patience:
            loss = train()
            if bad(loss) or loss > best:
                back = bad(loss) or phase1_restore != "none"
                rate, count = rate / 2, 0
                if back:
                    theta = checkpoint
                if phase1_restore == "initial":
                    best = math.inf
                rows.append(("restore" if back else "halving", rate, 1, theta))
            else:
                best, count = loss, count + 1
                if phase1_restore == "last":
                    checkpoint = theta
                if count < patience:
                    rows.append(("success", rate, 1, theta))
        checkpoint, rate, p = theta, rate * 2, 1
        rows.append(("success", rate, p, theta))
        while True:
            outcome = "failure"
            for chance in (1, 2):
                for i in range(p):
                    loss = train()
                    last = i == p - 1
                    if bad(loss) and (stop or last):
                        outcome = "bad"
                        break
                    if not last:
                        rows.append(("went on", rate, p, theta))
                if outcome == "bad":
                    break
                if loss < best:
                    outcome = "success"
                    break
                if chance == 1:
                    rows.append(("second chance", rate, p, theta))
            if outcome == "success":
                best, checkpoint, rate, p = loss, theta, rate * 2, 1
                rows.append(("success", rate, p, theta))
            else:
                rate, p = rate / 2, p * 2
                back = outcome == "bad" or restore == "always"
                if back:
                    theta = checkpoint
                rows.append(("restore" if back else "halving", rate, p, theta))
    except _OutOfEpochsError:
        return rows
