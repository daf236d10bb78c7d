"""dev.speech.listen: measurements of synthetic signals with known results."""

import math

import numpy as np
import pytest

from core.audio import Pcm
from dev.speech import listen
from dev.speech.listen import Segment, SpeechFinder

pytestmark = pytest.mark.unit

RATE = 8000


def tone(ms: float, peak: int = 10000, hz: float = 400) -> Pcm:
    t = np.arange(int(ms * RATE / 1000)) / RATE
    return (peak * np.sin(2 * np.pi * hz * t)).astype(np.int16)


def silence(ms: float) -> Pcm:
    return np.zeros(int(ms * RATE / 1000), np.int16)


def noise(samples: int, seed: int = 1, deviation: float = 3000) -> Pcm:
    rng = np.random.default_rng(seed)
    return rng.normal(0, deviation, samples).clip(-32768, 32767).astype(np.int16)


def join(*parts: Pcm) -> Pcm:
    return np.concatenate(parts)


class TestLevel:
    def test_a_constant_of_half_scale_has_minus_six_dbfs(self) -> None:
        level = listen.level_dbfs(np.full(800, 16384, np.int16))
        assert level == pytest.approx(-6.02, abs=0.01)

    def test_a_sine_has_three_db_less_than_its_peak(self) -> None:
        level = listen.level_dbfs(tone(1000, peak=16384))
        assert level == pytest.approx(20 * math.log10(0.5) - 3.01, abs=0.02)

    @pytest.mark.parametrize("pcm", [silence(100), silence(0)])
    def test_digital_silence_has_the_floor_level(self, pcm: Pcm) -> None:
        assert listen.level_dbfs(pcm) == listen.SILENCE_DBFS

    def test_full_negative_scale_does_not_overflow(self) -> None:
        assert listen.level_dbfs(np.full(160, -32768, np.int16)) == pytest.approx(0.0)

    def test_frame_levels_ignore_a_broken_last_frame(self) -> None:
        levels = listen.frame_levels(join(silence(20), tone(20), tone(7)), RATE)
        assert levels.shape == (2,)
        assert levels[0] == listen.SILENCE_DBFS
        assert levels[1] > -20


class TestSegments:
    def test_bounds_are_those_of_the_voiced_frames_without_the_hangover(self) -> None:
        pcm = join(silence(100), tone(300), silence(500), tone(200), silence(400))
        assert listen.voiced_segments(pcm, RATE) == [Segment(100, 400), Segment(900, 1100)]

    def test_a_short_pause_does_not_split(self) -> None:
        pcm = join(tone(200), silence(180), tone(200), silence(400))
        assert listen.voiced_segments(pcm, RATE) == [Segment(0, 580)]

    def test_a_pause_as_long_as_the_hangover_splits(self) -> None:
        pcm = join(tone(200), silence(200), tone(200), silence(400))
        assert listen.voiced_segments(pcm, RATE) == [Segment(0, 200), Segment(400, 600)]

    def test_a_click_is_no_speech(self) -> None:
        pcm = join(silence(100), tone(20), silence(400), tone(200), silence(300))
        assert listen.voiced_segments(pcm, RATE) == [Segment(520, 720)]

    def test_a_signal_that_ends_in_speech_ends_its_segment_there(self) -> None:
        assert listen.voiced_segments(join(silence(60), tone(200)), RATE) == [Segment(60, 260)]

    def test_the_threshold_decides(self) -> None:
        quiet = join(silence(100), tone(200, peak=100), silence(300))  # -53 dBFS
        assert listen.voiced_segments(quiet, RATE) == []
        assert listen.voiced_segments(quiet, RATE, threshold_dbfs=-60) == [Segment(100, 300)]

    def test_another_sample_rate(self) -> None:
        pcm = join(silence(200), tone(400), silence(600))  # 8 kHz samples read as 16 kHz
        assert listen.voiced_segments(pcm, 16000) == [Segment(100, 300)]

    def test_bounds_of_all_speech(self) -> None:
        pcm = join(silence(40), tone(100), silence(900), tone(100), silence(40))
        assert listen.speech_bounds(pcm, RATE) == Segment(40, 1140)
        assert listen.speech_bounds(silence(500), RATE) is None

    def test_longest_gap_lies_between_voiced_frames(self) -> None:
        pcm = join(
            silence(1000), tone(100), silence(60), tone(100), silence(340), tone(100), silence(999)
        )
        assert listen.longest_gap_ms(pcm, RATE) == 340
        assert listen.longest_gap_ms(tone(500), RATE) == 0
        assert listen.longest_gap_ms(silence(500), RATE) == 0


class TestSpeechFinder:
    @pytest.mark.parametrize("piece", [1, 37, 160, 1000])
    def test_pieces_of_any_size_give_what_the_whole_gives(self, piece: int) -> None:
        pcm = join(silence(130), tone(310), silence(500), tone(205), silence(400))
        finder = SpeechFinder(RATE)
        found = [s for i in range(0, len(pcm), piece) for s in finder.feed(pcm[i : i + piece])]
        assert found == listen.voiced_segments(pcm, RATE)
        assert len(found) == 2

    def test_an_utterance_is_complete_only_after_its_silence(self) -> None:
        finder = SpeechFinder(RATE, end_silence_ms=500)
        assert finder.feed(join(tone(200), silence(480))) == []
        assert finder.speaking
        assert finder.feed(silence(20)) == [Segment(0, 200)]
        assert not finder.speaking


class TestTimeToSilence:
    pcm = join(silence(100), tone(900), silence(1000))

    def test_from_the_middle_of_speech(self) -> None:
        assert listen.time_to_silence_ms(self.pcm, RATE, 400) == 600

    def test_from_the_middle_of_a_frame(self) -> None:
        assert listen.time_to_silence_ms(self.pcm, RATE, 410) == 590

    def test_already_silent(self) -> None:
        assert listen.time_to_silence_ms(self.pcm, RATE, 1200) == 0

    def test_a_breath_is_no_silence(self) -> None:
        pcm = join(tone(300), silence(200), tone(300), silence(800))
        assert listen.time_to_silence_ms(pcm, RATE, 100) == 700

    def test_never_silent(self) -> None:
        assert listen.time_to_silence_ms(tone(1000), RATE, 100) is None
        assert listen.time_to_silence_ms(join(tone(500), silence(399)), RATE, 0) is None


class TestFind:
    def test_exact_to_the_sample(self) -> None:
        needle = noise(4000)
        match = listen.find(needle, join(silence(123), needle, silence(456)))
        assert match.offset == 123 * RATE // 1000
        assert match.score == pytest.approx(1.0)

    def test_level_and_noise_do_not_matter(self) -> None:
        needle = noise(4000)
        heard = join(np.zeros(777, np.int16), needle // 4, np.zeros(100, np.int16))
        heard = heard + noise(len(heard), seed=2, deviation=100)
        match = listen.find(needle, heard)
        assert match.offset == 777
        assert match.score > 0.95

    def test_what_is_not_there_scores_low(self) -> None:
        assert listen.find(noise(4000), noise(20000, seed=3)).score < 0.2

    def test_a_louder_stranger_does_not_win(self) -> None:
        needle = noise(2000, deviation=300)
        stranger = noise(2000, seed=5, deviation=9000)
        assert listen.find(needle, join(stranger, needle)).offset == 2000

    def test_nothing_to_look_for_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needle"):
            listen.find(silence(100), noise(4000))
        with pytest.raises(ValueError, match="needle"):
            listen.find(noise(4000), noise(3999))
