-- How much better does every arm look on validation rows than on test rows? Mean over its confirmed pairs.
WITH latest AS (FROM studies QUALIFY row_number() OVER (PARTITION BY study ORDER BY revision DESC) = 1),
scored AS (
    SELECT trials.study, trials.arm, trials.phase, trials.pair_id,
           CAST(to_json(trials.metrics) ->> latest.score AS DOUBLE) AS score
    FROM trials JOIN latest USING (study)
    WHERE trials.phase IN ('confirm', 'test') AND trials.status = 'complete'
)
SELECT confirmed.study, confirmed.arm, count(*) AS pairs, avg(confirmed.score) AS validation,
       avg(tested.score) AS test, avg(confirmed.score - tested.score) AS gap
FROM scored AS confirmed JOIN scored AS tested
  ON tested.study = confirmed.study AND tested.arm = confirmed.arm AND tested.pair_id = confirmed.pair_id
WHERE confirmed.phase = 'confirm' AND tested.phase = 'test'
GROUP BY confirmed.study, confirmed.arm
ORDER BY confirmed.study, confirmed.arm
