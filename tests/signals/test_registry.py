"""What estimators may ask for is what the trainer can measure."""

from a2tgpo_trl import credit, trainer


def test_every_signal_has_its_options_and_its_measurement():
    assert trainer.SIGNALS.keys() == credit.SIGNALS.keys()
