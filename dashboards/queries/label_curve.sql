-- How does the score grow with the labels? One row per label fraction and arm; n counts its runs on the test rows.
WITH latest AS (FROM studies QUALIFY row_number() OVER (PARTITION BY study ORDER BY revision DESC) = 1)
SELECT trials.study, CAST(trials.config_json ->> '$.data.label_fraction' AS DOUBLE) AS label_fraction,
       any_value(declared.value ->> 'recipe') AS recipe, trials.arm, count(*) AS n,
       avg(CAST(to_json(trials.metrics) ->> latest.score AS DOUBLE)) AS score
FROM trials JOIN latest USING (study), json_each(latest.arms_json) AS declared
WHERE trials.phase = 'test' AND trials.status = 'complete' AND declared.value ->> 'name' = trials.arm
GROUP BY trials.study, label_fraction, trials.arm
ORDER BY trials.study, recipe, label_fraction, trials.arm
