-- How does every arm differ from its baseline, pair by pair, on the test rows? Higher is better.
WITH latest AS (FROM studies QUALIFY row_number() OVER (PARTITION BY study ORDER BY revision DESC) = 1),
scored AS (
    SELECT trials.study, trials.arm, trials.pair_id, trials.seed_index, trials.fold,
           CAST(to_json(trials.metrics) ->> latest.score AS DOUBLE) AS score
    FROM trials JOIN latest USING (study)
    WHERE trials.phase = 'test' AND trials.status = 'complete'
),
compared AS (
    SELECT latest.study, declared.value ->> 'name' AS arm,
           coalesce(declared.value ->> 'baseline', latest.baseline) AS baseline
    FROM latest, json_each(latest.arms_json) AS declared
)
SELECT one.study, one.arm, compared.baseline, one.pair_id, one.fold, one.seed_index, one.score,
       other.score AS baseline_score, one.score - other.score AS difference
FROM scored AS one
JOIN compared ON compared.study = one.study AND compared.arm = one.arm AND compared.baseline <> one.arm
JOIN scored AS other
  ON other.study = one.study AND other.arm = compared.baseline AND other.pair_id = one.pair_id
ORDER BY one.study, one.arm, one.fold, one.seed_index
