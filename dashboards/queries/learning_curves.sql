-- How did the validation loss (of a regression: the CCC) go per epoch? Mean over the confirmed runs of each arm.
SELECT epochs.arm, epochs.name AS curve, epochs.epoch, avg(epochs.value) AS mean, count(*) AS runs
FROM epochs JOIN trials USING (trial_id), (FROM studies ORDER BY revision DESC LIMIT 1) AS studies
WHERE epochs.phase = 'confirm' AND trials.status = 'complete'
  AND epochs.name = CASE studies.task WHEN 'classification' THEN 'validation/log_loss' ELSE 'validation/ccc' END
GROUP BY epochs.arm, curve, epochs.epoch
ORDER BY epochs.arm, epochs.epoch
