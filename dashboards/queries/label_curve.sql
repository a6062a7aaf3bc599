-- How does the score grow with the labels? One row per label fraction and arm; n counts its runs on the test rows.
SELECT CAST(trials.config_json ->> '$.data.label_fraction' AS DOUBLE) AS label_fraction,
       any_value(declared.value ->> 'recipe') AS recipe, trials.arm, count(*) AS n,
       avg(CAST(to_json(trials.metrics) ->> studies.score AS DOUBLE)) AS score
FROM trials, (FROM studies ORDER BY revision DESC LIMIT 1) AS studies,
     json_each(studies.arms_json) AS declared
WHERE trials.phase = 'test' AND trials.status = 'complete' AND declared.value ->> 'name' = trials.arm
GROUP BY label_fraction, trials.arm
ORDER BY recipe, label_fraction, trials.arm
