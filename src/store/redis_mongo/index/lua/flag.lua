-- Gives a turn to tenants that may have jobs in MongoDB that the index does not know.
-- ARGV: now, streams, then for each: stream, tenant.
-- Gives 1; 0 while the index is lost.
local now, streams = tonumber(ARGV[1]), tonumber(ARGV[2])
if not epoch() then return 0 end
local rung = false
for i = 3, #ARGV, 2 do
  local given_up_at = tonumber(redis.call('ZSCORE', key_of(ARGV[i], 'reading'), ARGV[i + 1]) or 0)
  -- A time-out further away was set by a wrong clock.
  if tonumber(ARGV[i]) < streams and (given_up_at <= now or given_up_at > now + 10000) then
    rung = take_turn(ARGV[i], ARGV[i + 1]) or rung
  end
end
if rung then ring() end
return 1
