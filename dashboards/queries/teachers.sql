-- How good were the teachers, and what did they cost? One row per network and metric on the validation rows.
WITH trained AS (
    SELECT study, name, cpu_s, unnest(json_keys(to_json(metrics))) AS metric, to_json(metrics) AS metrics
    FROM stages
    WHERE stage = 'teacher' AND NOT cache_hit
)
SELECT study, name, metric, count(*) AS trained, avg(CAST(metrics ->> metric AS DOUBLE)) AS value,
       sum(cpu_s) AS cpu_s
FROM trained
WHERE metrics ->> metric IS NOT NULL AND metric IN ('validation_accuracy', 'validation_log_loss', 'validation_ccc',
                                                    'validation_rmse')
GROUP BY study, name, metric
ORDER BY study, metric, value DESC, name
