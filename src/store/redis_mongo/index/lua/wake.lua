-- Ends the rest of all tenants, because the vendor's limits have changed. Each gets a turn, and rests again if its limit says so.
-- ARGV: now, streams. Gives 1; 0 while the index is lost.
even_when_full()
if not epoch() then return 0 end
for stream = 0, tonumber(ARGV[2]) - 1 do
  for _, tenant in ipairs(redis.call('ZRANGE', key_of(stream, 'resting'), 0, -1)) do take_turn(stream, tenant) end
  redis.call('DEL', key_of(stream, 'resting'))
end
ring()
return 1
