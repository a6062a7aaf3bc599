-- What did every repetition score? One row per arm, fold and seed: validation rows when confirmed, then test rows.
WITH latest AS (FROM studies QUALIFY row_number() OVER (PARTITION BY study ORDER BY revision DESC) = 1)
SELECT trials.study, trials.arm, trials.fold, trials.seed_index, any_value(trials.seed) AS seed,
       max(CAST(to_json(trials.metrics) ->> latest.score AS DOUBLE)) FILTER (phase = 'confirm') AS validation,
       max(CAST(to_json(trials.metrics) ->> latest.score AS DOUBLE)) FILTER (phase = 'test') AS test,
       string_agg(DISTINCT trials.status, ', ') AS status
FROM trials JOIN latest USING (study)
WHERE trials.phase IN ('confirm', 'test')
GROUP BY trials.study, trials.arm, trials.fold, trials.seed_index
ORDER BY trials.study, trials.arm, trials.fold, trials.seed_index
